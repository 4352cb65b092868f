"""A shard set of this project as the source of another: what set.json says of a tar is held to it on the way.

A new set has hashes of its own, so what was damaged in the old one would be vouched for anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from nml.errors import UserError
from nml.levels import CLEAN_LEVEL
from nml.remote_files import AnyPath, files_at
from nml.set_file import SET_FILE, WORK_FIRST, WORK_FOLDER, interrupted
from shards.index_table import IndexTable
from shards.ladder import Level
from shards.set_info import INDEX_FILE, SetInfo, parse_set_info
from shards.tarwalk import Member


class OwnSet:
    """The set in a folder, with its index.

    Attributes:
        folder: Where it is.
        info: What set.json says.
    """

    def __init__(self, folder: Path, info: SetInfo) -> None:
        self.folder = folder
        self.info = info
        self._index = IndexTable(folder / INDEX_FILE, info)
        starts = accumulate((shard.samples for shard in info.shards), initial=0)
        self._first = {shard.name: start for shard, start in zip(info.shards, starts, strict=False)}
        self._shards = {shard.name: shard for shard in info.shards}

    @classmethod
    def around(cls, tars: Sequence[AnyPath]) -> OwnSet | None:
        """Return the set that tars belong to, if they belong to one.

        Raises:
            UserError: If a set is still being written there, lies among other tars, or is at a URL: what is
                read there is not held to its index.
        """
        folders = list({str(tar.parent): tar.parent for tar in tars}.values())
        found = [_set_in(folder) for folder in folders]
        # Of tars that were indexed where they lie, the labels are what any tar's are.
        written = [each for each in found if each and each.is_written_here]
        if written and len(folders) > 1:
            raise UserError(
                f"{written[0].folder}: is a shard set among other tars, with labels of its own",
                mend=f"name its folder alone, or leave it out; {len(folders):,} folders of tars were named",
            )
        return found[0]

    @property
    def is_written_here(self) -> bool:
        """Whether its tars hold its levels; else they were indexed where they lie."""
        return bool(self.info.request)

    def origin(self, field: str) -> dict[str, str]:
        """Return set and level that a field's labels are of: of its parent where the set has copied them."""
        level = self.level(field).name
        if level == CLEAN_LEVEL and self.info.parent and self.info.parent["level"] != CLEAN_LEVEL:
            return self.info.parent
        return {"fingerprint": self.info.fingerprint, "level": level}

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
        if not self.is_written_here or (field and level.column != field):
            return
        labels = label if isinstance(label, tuple) else (label,)
        same = (
            str(each) == str(self._index.supervision(row, level.column, turn))
            for turn, each in enumerate(labels)
        )
        if base != written.key or not all(same):
            raise _damaged(tar, f"sample {base!r} is not labelled as it was written")


def _set_in(folder: AnyPath) -> OwnSet | None:
    if isinstance(folder, Path):
        set_file = folder / SET_FILE
        if set_file.is_file():
            return OwnSet(folder, parse_set_info(set_file.read_bytes(), str(set_file)))
        written = (folder / WORK_FOLDER).is_dir()
    else:
        files = files_at(str(folder))
        if files.has(str(folder / SET_FILE)):
            raise UserError(
                f"{folder}: is a shard set, which is no source at a URL",
                mend=f"add levels to it beside it: python -m shards.index {folder} --out FOLDER; "
                "or copy it to this machine",
            )
        written = files.has(f"{folder}/{WORK_FOLDER}/{WORK_FIRST}")
    if written:
        raise interrupted(str(folder))
    return None


def _damaged(tar: Path, what: str) -> UserError:
    return UserError(
        f"{tar}: {what}: the set is damaged",
        mend="restore the file, or write the set again; "
        f"python -m shards.verify {tar.parent} tells what else is wrong",
    )
