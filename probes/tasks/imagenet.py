"""ImageNet, and the six sets it is tested on out-of-domain.

``imagenet:/data/imagenet,variants=/data/imagenet-variants`` reads all of them as they are published::

    /data/imagenet/
        train/n01440764/*.JPEG ...      a folder a class; the sorted names number the classes
        val/n01440764/*.JPEG ...        sorted into folders, as valprep.sh does
    /data/imagenet-variants/
        imagenetv2-matched-frequency-format-val/0 ... 999    numbered by class
        imagenet-r/ sketch/ imagenet-a/                      a folder a class, named as in train
        objectnet-1.0/images/ objectnet-1.0/mappings/        with the mappings that come with it
        imagenet-vid-robust/val/ .../metadata/ .../misc/     with its metadata

A variant somewhere else is named by an option: ``v2=``, ``r=``, ``sketch=``, ``a=``, ``objectnet=``,
``vid_robust=``. Which are not there is said; the others are measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from probes.spec import Spec, check_options
from probes.tasks import imagenet_variants as variants
from probes.tasks.assembling import codes_of, content_revision, parse_limit
from probes.tasks.own_data import ANYWHERE, read_split
from probes.tasks.samplesets import limited
from probes.tasks.task import Evaluation, Task, TaskRecord


class Variant(NamedTuple):
    """One out-of-domain set.

    Attributes:
        name: Name in results.
        folders: Where it lies when unpacked, relative to where all variants are.
        read: From (name, folder, classes, limit) to the test data.
        source: Where it is published.
    """

    name: str
    folders: tuple[str, ...]
    read: Callable[[str, Path, tuple[str, ...], int | None], Evaluation]
    source: str


VARIANTS = {
    "v2": Variant(
        "imagenet-v2",
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency", "imagenet-v2"),
        variants.read_numbered,
        "github.com/modestyachts/ImageNetV2",
    ),
    "r": Variant("imagenet-r", ("imagenet-r",), variants.read_named, "github.com/hendrycks/imagenet-r"),
    "sketch": Variant(
        "imagenet-sketch",
        ("sketch", "imagenet-sketch", "ImageNet-Sketch"),
        variants.read_named,
        "github.com/HaohanWang/ImageNet-Sketch",
    ),
    "a": Variant(
        "imagenet-a", ("imagenet-a",), variants.read_named, "github.com/hendrycks/natural-adv-examples"
    ),
    "objectnet": Variant(
        "objectnet", ("objectnet-1.0", "objectnet"), variants.read_objectnet, "objectnet.dev"
    ),
    "vid_robust": Variant(
        "imagenet-vid-robust",
        ("imagenet-vid-robust", "imagenet_vid_ytbb_robust/imagenet-vid-robust"),
        variants.read_vid_robust,
        "github.com/modestyachts/imagenet-vid-robust-example",
    ),
}


class ImageNetTask:
    """``imagenet:ROOT[,variants=FOLDER][,v2=FOLDER ...][,limit=N]``."""

    record = TaskRecord(
        name="imagenet",
        modality="image",
        num_classes=1000,
        splits={"train": 1281167, "val": 50000},
        ood=tuple(variant.name for variant in VARIANTS.values()),
        source="image-net.org, placed by hand: imagenet:ROOT with ROOT/train and ROOT/val; variants: "
        + ", ".join(f"{option}= ({variant.source})" for option, variant in VARIANTS.items()),
        revision="hash of the content",
        licence="research, non-commercial (image-net.org); ObjectNet: CC BY 4.0, for evaluation alone",
        checked="layouts and scoring against WiSE-FT's loaders and the scorer of ImageNet-Vid-Robust",
        note="-A, -R and ObjectNet are scored among their own classes; ImageNet-Vid-Robust reports pm-10 "
        "(every frame of a set right) as its metric and the anchors as its accuracy",
    )

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant."""
        check_options(spec, ("variants", "limit", *VARIANTS), where="--task")
        parse_limit(spec)

    def open(self, spec: Spec, root: Path) -> Task:
        """Return ImageNet with every variant that is there.

        Raises:
            UserError: If a folder is missing, or a variant does not fit the training classes.
        """
        self.check(spec)
        limit = parse_limit(spec)
        place = Path(spec.arguments[0]) if spec.arguments else root / "imagenet"
        train = read_split("imagefolder", str(place / "train"), ANYWHERE)
        classes = tuple(sorted(set(train.labels)))
        samples = limited(train.build(codes_of(train.labels, classes, str(place / "train"))), limit)
        tests = [variants.read_named("imagenet", place / "val", classes, limit)._replace(domain="id")]
        tests += [
            variant.read(variant.name, folder, classes, limit)
            for variant, folder in _found(spec, Path(spec.options.get("variants", place)))
        ]
        return Task(
            name="imagenet",
            modality="image",
            classes=classes,
            revision=content_revision(samples, None, tests),
            train=samples,
            validation=None,
            evaluations=tuple(tests),
        )


def _found(spec: Spec, home: Path) -> list[tuple[Variant, Path]]:
    """Return the variants that are on disk; say which are not."""
    if not home.is_dir():
        raise UserError(f"--task {spec.text}: no folder {home}", mend="check the path")
    found, missing = [], []
    for option, variant in VARIANTS.items():
        named = spec.options.get(option)
        if named is not None and not Path(named).is_dir():
            raise UserError(f"--task {spec.text}: {option}: no folder {named}", mend="check the path")
        places = [Path(named)] if named else [home / folder for folder in variant.folders]
        place = next((folder for folder in places if folder.is_dir()), None)
        if place is None:
            missing.append(variant.name)
        else:
            found.append((variant, place))
    if missing:
        print(
            f"task imagenet: without {', '.join(missing)}: not in {home}; "
            "where to get them: python -m probes.tasks show imagenet",
            file=sys.stderr,
        )
    return found


IMAGENET = ImageNetTask()
