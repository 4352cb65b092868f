"""torchvision data sets: ``torchvision:CIFAR10`` or ``torchvision:Food101:/data/food``.

Images that lie in files are taken as they are. Those that torchvision holds as arrays (CIFAR,
MNIST) become PNGs, which lose nothing.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from nml.errors import UserError, unknown_name
from nml.sources import Example, Kind, SourceSpec, whole_file
from shards.sources.files import looks_held_out

DEFAULT_ROOT = "data/torchvision"


class TorchvisionSource:
    """A classification data set of torchvision, NAME or NAME:FOLDER; downloaded where it can and must be."""

    kind: ClassVar[Kind] = "class"
    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns()
        name, _, root = spec.require_argument("data set", "torchvision:CIFAR10").partition(":")
        split = spec.split or spec.usual_split
        self._spec = spec
        self._data = _load(spec, name, Path(root or DEFAULT_ROOT).expanduser(), split)
        classes = getattr(self._data, "classes", None)
        self.classes: tuple[str, ...] | None = tuple(map(str, classes)) if classes else None
        # What has no splits may itself be one: torchvision:ImageFolder:/data/imagenet/val.
        parameters = inspect.signature(type(self._data)).parameters
        told = split if {"train", "split"} & parameters.keys() else str(Path(root or DEFAULT_ROOT).absolute())
        self.held_out = looks_held_out(told)

    def __iter__(self) -> Iterator[Example]:
        files = _files(self._data)
        for number in range(len(self._data)):
            name = self._spec.row_name(number)
            if files is not None:
                path, label = files[number]
                yield Example(name, label, whole_file(path.absolute()))
                continue
            image, label = self._data[number]
            if not isinstance(label, int):
                raise UserError(
                    f"{self._spec.shown}: sample {number} has the label {label!r}, which is no class",
                    mend="use a classification data set",
                )
            file = io.BytesIO()
            image.save(file, format="PNG", compress_level=1)
            yield Example(name, label, file.getvalue())


def _load(spec: SourceSpec, name: str, root: Path, split: str) -> Any:
    import torchvision.datasets

    if name not in torchvision.datasets.__all__:
        raise unknown_name(f"{spec.shown}", name, torchvision.datasets.__all__)
    kind = getattr(torchvision.datasets, name)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if "train" in parameters:
        if split not in ("train", "test"):
            raise UserError(f"{spec.flag('split')}{split}: not a split of {name}", possible="train, test")
        options["train"] = split == "train"
    elif "split" in parameters:
        options["split"] = split
    elif spec.split:
        raise UserError(
            f"{spec.flag('split')}{split}: torchvision's {name} has no splits", mend="leave it out"
        )
    if "download" in parameters:
        options["download"] = True
    try:
        return kind(root, **options)
    # Which errors a data set raises for a missing file, split or network differs from one to the next.
    except Exception as error:
        raise UserError(
            f"{spec.shown}: cannot open {split} in {root}: {type(error).__name__}: {error}",
            mend="check the folder, the split and the network",
        ) from error


def _files(data: Any) -> list[tuple[Path, int]] | None:
    """Return (file, class) of each sample where the data set keeps such a list, else None."""
    samples = getattr(data, "samples", None)
    if samples:
        return [(Path(path), int(label)) for path, label in samples]
    for files, labels in (("_image_files", "_labels"), ("_images", "_labels")):
        if hasattr(data, files) and hasattr(data, labels):
            pairs = zip(getattr(data, files), getattr(data, labels), strict=True)
            return [(Path(path), int(label)) for path, label in pairs]
    return None
