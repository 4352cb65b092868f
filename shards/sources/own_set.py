"""A shard set of this project as the source of another: what set.json says of a tar is held to it on the way.

A new set has hashes of its own, so what was damaged in the old one would be vouched for anew.
"""

from __future__ import annotations

import hashlib
import os
from itertools import accumulate
from pathlib import Path

from nml.errors import UserError
from nml.remote_files import AnyPath, files_at
from nml.set_file import SET_FILE
from shards.index_table import IndexTable
from shards.ladder import Level
from shards.set_info import INDEX_FILE, SetInfo, parse_set_info
from shards.tarwalk import Member


class OwnSet:
    """The set in a folder, with its index.

    Attributes:
        info: What set.json says.
    """

    def __init__(self, folder: Path, info: SetInfo) -> None:
        self.info = info
        self._index = IndexTable(folder / INDEX_FILE, info)
        starts = accumulate((shard.samples for shard in info.shards), initial=0)
        self._first = {shard.name: start for shard, start in zip(info.shards, starts, strict=False)}
        self._shards = {shard.name: shard for shard in info.shards}

    @classmethod
    def around(cls, tar: AnyPath) -> OwnSet | None:
        """Return the set that a tar belongs to, if it belongs to one.

        Raises:
            UserError: If the set is at a URL: what is read there is not held to its index.
        """
        if not isinstance(tar, Path):
            if files_at(str(tar)).has(str(tar.parent / SET_FILE)):
                raise UserError(
                    f"{tar.parent}: is a shard set, which is no source at a URL",
                    mend=f"add levels to it beside it: python -m shards.index {tar.parent} --out FOLDER; "
                    "or copy it to this machine",
                )
            return None
        set_file = tar.parent / SET_FILE
        if not set_file.is_file():
            return None
        return cls(tar.parent, parse_set_info(set_file.read_bytes(), str(set_file)))

    def level(self, field: str) -> Level:
        """Return the level whose labels are read: that of the field named, else that of the members."""
        levels = self.info.all_levels()
        named = (level for level in levels.values() if level.column == field)
        return next(named, levels[self.info.primary])

    def check_size(self, tar: Path) -> None:
        """Raise a UserError if a tar of the set has another size than it was written with."""
        shard = self._shards.get(tar.name)
        if shard is not None and tar.stat().st_size != shard.bytes:
            raise _damaged(tar, f"has {tar.stat().st_size:,} bytes, set.json says {shard.bytes:,}")

    def check(
        self,
        tar: Path,
        place: int,
        base: str,
        image: Member,
        label: int | str | tuple[str, ...],
        field: str,
    ) -> None:
        """Hold one sample of a tar to the index: where it lies, its image, and its label as it was read.

        Args:
            tar: The tar; one that the set does not name is not held to anything.
            place: Number of the sample in it.
            base: Its name.
            image: Where its image lies.
            label: Its class or caption, or captions.
            field: Field of the ``.json`` that this was read from; empty for the ``.cls`` or ``.txt``.

        Raises:
            UserError: If one differs.
        """
        shard = self._shards.get(tar.name)
        if shard is None:
            return
        if place >= shard.samples:
            raise _damaged(tar, f"has more than {shard.samples:,} samples")
        row = self._first[tar.name] + place
        written = self._index.place(row)
        if (image.offset, image.size) != (written.offset, written.size):
            raise _damaged(tar, f"sample {base!r} does not lie where the index says")
        with tar.open("rb", buffering=0) as file:
            if hashlib.sha256(os.pread(file.fileno(), image.size, image.offset)).digest() != written.sha256:
                raise _damaged(tar, f"the image of sample {base!r} does not match its SHA-256")
        # Tars that were indexed where they lie have names and labels of their own making.
        level = self.level(field)
        if not self.info.request or (field and level.column != field):
            return
        labels = label if isinstance(label, tuple) else (label,)
        same = (
            str(each) == str(self._index.supervision(row, level.column, turn))
            for turn, each in enumerate(labels)
        )
        if base != written.key or not all(same):
            raise _damaged(tar, f"sample {base!r} is not labelled as it was written")


def _damaged(tar: Path, what: str) -> UserError:
    return UserError(
        f"{tar}: {what}: the set is damaged",
        mend="restore the file, or write the set again; "
        f"python -m shards.verify {tar.parent} tells what else is wrong",
    )
