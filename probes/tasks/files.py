"""Tasks in image files: ``imagefolder:`` with a folder a class, ``wds:`` with WebDataset tars."""

from __future__ import annotations

import functools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml.errors import UserError
from probes.hashing import hash_value
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, RawSplit, assemble
from probes.tasks.samplesets import ImageBytes
from probes.tasks.task import Task, TaskRecord

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class ImageFolderTask:
    """``imagefolder:TRAIN,TEST``: folders that hold a folder a class."""

    record = TaskRecord(
        name="imagefolder",
        modality="image",
        num_classes=0,
        ood=("every further folder", "or shifts of the test images"),
        source="your own folders: imagefolder:TRAIN,TEST[,OOD], a folder a class in each",
        revision="hash of the content",
        licence="yours",
    )

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task of the folders."""
        check_options(spec, OPTIONS, where="--task")
        return assemble(spec, read_folder)


class WebDatasetTask:
    """``wds:TRAIN,TEST``: tars, or folders of tars, with an image and a ``cls`` or ``json`` label."""

    record = TaskRecord(
        name="wds",
        modality="image",
        num_classes=0,
        ood=("every further tar or folder", "or shifts of the test images"),
        source="your own WebDataset tars: wds:TRAIN,TEST[,OOD][,label=FIELD], tars or folders of tars",
        revision="hash of the content",
        licence="yours",
        note="label=FIELD reads the label from that field of the json member, for example label=label_n20",
    )

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002
        """Return the task of the tars."""
        check_options(spec, (*OPTIONS, "label"), where="--task")
        return assemble(spec, functools.partial(_read_tars, label=spec.options.get("label")))


class FileImages:
    """Images that are a file each.

    Args:
        files: The N files.
    """

    layout = "a file an image"

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> bytes:
        try:
            return self.files[index].read_bytes()
        except OSError as error:
            raise UserError(
                f"--task: {self.files[index]} cannot be read: {error.strerror}",
                mend="repair it, or remove it",
            ) from error

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.files[index])


class _Place(NamedTuple):
    tar: Path
    offset: int
    size: int


class _Sample(NamedTuple):
    key: str
    label: Any
    place: _Place


class _TarImages:
    """Images that are members of tars, read by offset."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self.places = places
        self.files = sorted({place.tar for place in places})
        self.layout = hash_value([[place.tar.name, place.offset, place.size] for place in places])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        tar, offset, size = self.places[index]
        with tar.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        """Return the tar and the place in it."""
        return f"at byte {self.places[index].offset} of {self.places[index].tar}"


def read_folder(path: str) -> RawSplit:
    """Read a folder with a folder of images for each class.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"--task: no folder {path}", mend="check the path")
    keys = sorted(_images_below(root), key=lambda key: key.split("/"))
    if not keys:
        raise UserError(
            f"--task: no images in the folders of {path}", possible=f"CLASS/FILE with {', '.join(SUFFIXES)}"
        )
    labels = [key.partition("/")[0] for key in keys]
    files = [root / key for key in keys]
    return RawSplit(keys, labels, None, "image", lambda codes: ImageBytes(keys, codes, FileImages(files)))


def _images_below(root: Path) -> Iterator[str]:
    """Yield the images in the folders of ``root``, as paths relative to it."""
    for folder, _, names in os.walk(root, followlinks=True):
        place = Path(folder).relative_to(root).as_posix()
        if place != ".":
            yield from (f"{place}/{name}" for name in names if name.lower().endswith(SUFFIXES))


def _read_tars(path: str, label: str | None) -> RawSplit:
    place = Path(path)
    tars = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    if not tars or not tars[0].is_file():
        raise UserError(f"--task: no tar at {path}", possible="a tar, or a folder of tars")
    found: list[_Sample] = [sample for tar in tars for sample in _index(tar, label)]
    if not found:
        raise UserError(
            f"--task: no sample of {path} has an image and a label",
            possible="members KEY.jpg and KEY.cls or KEY.json",
        )
    keys = [sample.key for sample in found]
    if len(set(keys)) < len(keys):
        # Tars that each count from 0. Elsewhere keys stay as they are: the carving and the limit follow them.
        keys = [f"{sample.place.tar.name}/{sample.key}" for sample in found]
    labels = [sample.label for sample in found]
    places = [sample.place for sample in found]
    return RawSplit(keys, labels, None, "image", lambda codes: ImageBytes(keys, codes, _TarImages(places)))


def _index(tar: Path, label: str | None) -> list[_Sample]:
    """Return the samples of one tar that have an image and a label; a key names a sample within its tar."""
    images: dict[str, _Place] = {}
    labels: dict[str, Any] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                # As webdataset splits: folders may hold dots, and `tar cf a.tar .` begins all names with one.
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                key, suffix = f"{folder}{slash}{stem}", suffix.lower()
                if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
                    images[key] = _Place(tar, member.offset_data, member.size)
                elif (suffix == "cls" and label is None) or suffix == "json":
                    file = archive.extractfile(member)
                    found = _label(file.read() if file else b"", suffix, label, f"{tar}: {member.name}")
                    # The .cls member, where there is one, is what the tar's writer meant a reader to see.
                    if found is not None and (suffix == "cls" or key not in labels):
                        labels[key] = found
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"--task: {tar} cannot be read: {error}", mend="check the file") from error
    return [_Sample(key, labels[key], place) for key, place in images.items() if key in labels]


def _label(data: bytes, suffix: str, label: str | None, where: str) -> Any:
    try:
        if suffix == "cls":
            return int(data)
        content = json.loads(data)
        return content.get(label or "label") if isinstance(content, dict) else None
    except ValueError as error:
        raise UserError(f"--task: {where}: no label: {error}", mend="write the class as a number") from error


IMAGE_FOLDER = ImageFolderTask()
WEBDATASET = WebDatasetTask()
