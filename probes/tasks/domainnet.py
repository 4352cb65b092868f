"""DomainNet: train on real photographs or on sketches, tested on the other three domains.

    data/tasks/domainnet/
        real/CLASS/FILE.jpg  sketch/...  clipart/...  painting/...
        real_train.txt  real_test.txt  sketch_train.txt ...     lines ``real/CLASS/FILE.jpg LABEL``
        duplicates.txt                                          optional: lines ``real/CLASS/FILE.jpg``

The images and the lists are those of the authors' page. DomainNet holds the same image in several splits;
``duplicates.txt``, for example DomainBed's ``misc/domain_net_duplicates.txt``, names the files to leave out.
"""

from __future__ import annotations

import functools
from pathlib import Path

from nml.errors import UserError
from nml.files import sha256_file
from nml.sources import whole_file
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, RawSplit, SplitName, assemble, check_values
from probes.tasks.task import Task, TaskRecord

DOMAINS = ("real", "sketch", "clipart", "painting")
DUPLICATES = "duplicates.txt"


class DomainNetTask:
    """``domainnet`` or ``domainnet:train=sketch``."""

    record = TaskRecord(
        name="domainnet",
        modality="image",
        num_classes=345,
        ood=tuple(f"domainnet-{domain}_test" for domain in DOMAINS),
        source="authors' page (ai.bu.edu/M3SDA), placed by hand; train=real or train=sketch",
        revision="hash of the content; the duplicates list is named by its hash",
        licence="fair use, see the authors' page",
        note="trained on one domain, the other domains are OOD; duplicates.txt names files to leave out",
    )

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant."""
        check_options(spec, (*OPTIONS, "train"), where="--task")
        check_values(spec, "image")
        train = spec.options.get("train", "real")
        if train not in ("real", "sketch"):
            raise UserError(f"--task {spec.text}: train {train}", possible="real, sketch")

    def open(self, spec: Spec, root: Path) -> Task:
        """Return the task.

        Raises:
            UserError: If a list or a file of one is missing.
        """
        self.check(spec)
        train = spec.options.get("train", "real")
        folder = root / "domainnet"
        duplicates = _duplicates(folder)
        paths = [
            f"{train}_train",
            f"{train}_test",
            *(f"{domain}_test" for domain in DOMAINS if domain != train),
        ]
        marker = sha256_file(folder / DUPLICATES)[:8] if duplicates else "kept"
        options = {"shifts": "none"} | dict(spec.options) | {"name": f"domainnet-{train}"}
        lists = tuple(str(folder / f"{path}.txt") for path in paths)
        read = functools.partial(_read_list, folder=folder, duplicates=duplicates)
        task = assemble(Spec(spec.text, spec.kind, lists, options), read)
        return Task(**(vars(task) | {"revision": f"{task.revision}-duplicates-{marker}"}))


def _duplicates(folder: Path) -> frozenset[str]:
    path = folder / DUPLICATES
    return frozenset(path.read_text().split()) if path.exists() else frozenset()


def _read_list(path: str, _: SplitName, folder: Path, duplicates: frozenset[str]) -> RawSplit:
    place = Path(path)
    if not place.exists():
        raise UserError(
            f"task domainnet: no list {path}",
            mend="download DomainNet and its lists from ai.bu.edu/M3SDA into this folder",
        )
    keys, labels = [], []
    for number, line in enumerate(place.read_text().splitlines(), start=1):
        key, label = line.rpartition(" ")[::2]
        if not label.isdigit():
            raise UserError(f"task domainnet: line {number} of {path}: {line!r}", possible="FILE LABEL")
        if key not in duplicates:
            keys.append(key)
            labels.append(int(label))
    files = [folder / key for key in keys]
    try:
        return RawSplit(keys, labels, None, [whole_file(file) for file in files])
    except OSError as error:
        raise UserError(
            f"task domainnet: no file {error.filename}", mend=f"unpack the images of {place.stem}"
        ) from error


DOMAINNET = DomainNetTask()
