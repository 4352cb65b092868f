"""An image folder: one folder a class, as ImageNet comes; class indices follow the sorted names."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from nml.errors import UserError
from nml.files import is_utf8
from nml.images import SUFFIXES
from nml.sources import ByteRange, Example, Kind, SourceSpec
from shards.sources.files import is_below, looks_held_out


class ImageFolderSource:
    """``imagefolder:PATH``, where PATH/CLASS/**/IMAGE; names that begin with a dot are passed over."""

    kind: ClassVar[Kind] = "class"
    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns(image_root=True)
        root = Path(spec.require_argument("folder", "imagefolder:/data/imagenet/train")).expanduser()
        if spec.split:
            root = root / spec.split
        if not root.is_dir():
            raise UserError(
                f"{spec.shown}: there is no folder {root}",
                mend="name the folder that holds one folder a class",
            )
        self._root = root
        self._spec = spec
        self._shown = spec.shown
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = [entry for entry in visible if entry.is_dir()]
            names = sorted(entry.name for entry in folders)
            self._without_class = sum(
                entry.name.lower().endswith(SUFFIXES) for entry in visible if not entry.is_dir()
            )
        if not names:
            raise UserError(
                f"{spec.shown}: {root} holds no folders",
                mend="name the folder that holds one folder a class, with its images inside",
            )
        for entry in folders:
            self._refuse_outside(entry)
        self.classes: tuple[str, ...] | None = tuple(names)
        self.held_out = looks_held_out(str(root.absolute()))

    def __iter__(self) -> Iterator[Example]:
        others: Counter[str] = Counter()
        found = False
        empty = []
        for name in self.classes or ():
            empty.append(name)
            for relative, path, size in self._images(str(self._root.absolute() / name), name, others):
                found = True
                if empty and empty[-1] == name:
                    empty.pop()
                if is_utf8(relative):
                    yield Example(relative, name, ByteRange(path, 0, size))
                else:
                    refused = f"{self._shown}: the name {relative!r} is no UTF-8"
                    self._spec.refuse(
                        relative, "bad name", UserError(refused, mend="rename the file or folder")
                    )
        if not found:
            raise UserError(
                f"{self._shown}: no image in the {len(self.classes or ())} folders of {self._root}",
                possible="files ending in " + " ".join(SUFFIXES),
            )
        if self._without_class:
            print(
                f"passed over {self._without_class:,} images directly in {self._root}, which are of no class",
                file=sys.stderr,
            )
        if empty:
            named = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
            print(
                f"no image of {len(empty):,} classes, which noise may give all the same: {named}",
                file=sys.stderr,
            )
        if others:
            kinds = ", ".join(
                f"{count} {suffix or 'without an ending'}" for suffix, count in sorted(others.items())
            )
            print(
                f"passed over {others.total():,} files of {self._root} that are no images: {kinds}",
                file=sys.stderr,
            )

    def _images(
        self, folder: str, relative: str, others: Counter[str], above: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, str, int]]:
        """Yield (name below the root, path, bytes) of every image below, sorted.

        Links are followed where they stay in the folder: who made it could otherwise put any image of its
        reader's into shards that are published.
        """
        above = (*above, folder)
        for entry in self._entries(folder, relative):
            name = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                self._refuse_outside(entry)
                if entry.is_symlink() and _leads_back(Path(entry.path), above):
                    refused = UserError(
                        f"{self._shown}: {entry.path} is a link to a folder above itself, which never ends",
                        mend="remove the link",
                    )
                    self._spec.refuse(name, "endless link", refused)
                    continue
                yield from self._images(entry.path, name, others, above)
            elif entry.name.lower().endswith(SUFFIXES):
                self._refuse_outside(entry)
                size = self._size(entry, name)
                if size is not None:
                    yield name, entry.path, size
            else:
                others[Path(entry.name).suffix.lower()] += 1

    def _refuse_outside(self, entry: os.DirEntry[str]) -> None:
        link = Path(entry.path)
        # One that leads nowhere is told as such.
        if not entry.is_symlink() or not link.exists():
            return
        roots = (str(self._root), *filter(None, [self._spec.image_root]))
        target = link.resolve()
        if not is_below(target if target.is_dir() else target.parent, roots):
            raise UserError(
                f"{self._shown}: {link} is a link to {target}, outside of {' and '.join(roots)}",
                mend=f"if it is yours to use, say where images are: {self._spec.flag('image_root')}FOLDER",
            )

    def _entries(self, folder: str, relative: str) -> list[os.DirEntry[str]]:
        """Return what lies in a folder, sorted; nothing where it cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            refused = UserError(
                f"{self._shown}: {folder} cannot be read: {error.strerror}", mend="mend it or remove it"
            )
            self._spec.refuse(relative, "unreadable folder", refused)
            return []

    def _size(self, entry: os.DirEntry[str], name: str) -> int | None:
        try:
            return entry.stat().st_size
        except OSError as error:
            what = "a link to nothing" if entry.is_symlink() else "an image that cannot be read"
            refused = UserError(
                f"{self._shown}: {entry.path} is {what}: {error.strerror}",
                mend="mend it or remove it, and run the same command again",
            )
            self._spec.refuse(name, "unreadable image", refused)
            return None


def _leads_back(link: Path, above: tuple[str, ...]) -> bool:
    """Whether a link leads to one of the folders that it was found in, or to one above them."""
    target = link.resolve()
    return any(Path(folder).resolve().is_relative_to(target) for folder in above)
