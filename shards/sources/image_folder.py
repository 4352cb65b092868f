"""An image folder: one folder a class, as ImageNet comes; class indices follow the sorted names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from nml.errors import UserError
from shards.noise import Kind
from shards.sources import ByteRange, Example, SourceSpec
from shards.sources.splits import looks_held_out

# What torchvision's ImageFolder accepts, so that both see the same samples.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolderSource:
    """``imagefolder:PATH``, where PATH/CLASS/**/IMAGE."""

    kind: ClassVar[Kind] = "class"
    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns()
        root = Path(spec.require_argument("folder", "imagefolder:/data/imagenet/train")).expanduser()
        if spec.split:
            root = root / spec.split
        if not root.is_dir():
            raise UserError(
                f"--source {spec.text}: there is no folder {root}",
                mend="name the folder that holds one folder a class",
            )
        self._root = root
        with os.scandir(root) as entries:
            names = sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
        if not names:
            raise UserError(
                f"--source {spec.text}: {root} holds no folders",
                mend="name the folder that holds one folder a class, with its images inside",
            )
        self.classes: tuple[str, ...] | None = tuple(names)
        self.held_out = looks_held_out(str(root.absolute()))

    def __iter__(self) -> Iterator[Example]:
        found = False
        for label, name in enumerate(self.classes or ()):
            for relative, path, size in _images(str(self._root.absolute() / name), name):
                found = True
                yield Example(relative, label, ByteRange(path, 0, size))
        if not found:
            raise UserError(
                f"--source imagefolder: no image in the {len(self.classes or ())} folders of {self._root}",
                possible="files ending in " + " ".join(EXTENSIONS),
            )


def _images(folder: str, relative: str) -> Iterator[tuple[str, str, int]]:
    """Yield (name below the root, path, bytes) of every image below a folder, sorted; links are followed."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{relative}/{entry.name}"
        if entry.is_dir():
            yield from _images(entry.path, name)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield name, entry.path, _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        what = "a link to nothing" if entry.is_symlink() else "an image that cannot be read"
        raise UserError(
            f"--source imagefolder: {entry.path} is {what}: {error.strerror}",
            mend="mend it or remove it, and run the same command again",
        ) from error
