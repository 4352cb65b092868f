"""Existing WebDataset tars: an image and a ``.cls``, a ``.txt`` or a ``.json`` field a sample.

``webdataset:PATH``, where PATH is a tar, a folder of tars, a pattern with ``*``, or a range such as
``cc12m-{0000..0099}.tar``. Image bytes are only pointed at. A shard set of this project is such a
folder too; its own noise is known, and noising it again must be asked for.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nml.errors import UserError
from nml.set_file import SET_FILE
from shards.noise import Kind
from shards.setfile import SetInfo, parse_set_info
from shards.sources import ByteRange, Example, SourceSpec
from shards.sources.splits import Chosen, choose_split
from shards.sources.values import caption_value, class_value
from shards.tarsamples import TarSample, tar_samples
from shards.tarwalk import Member, walk

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Captions and metadata; a larger member is no supervision.
_MAX_TEXT = 1 << 20


class WebDatasetSource:
    """Samples of WebDataset tars, in order of the tars' names."""

    def __init__(self, spec: SourceSpec) -> None:
        if spec.image_column or spec.key_column:
            raise UserError(
                "--image-column, --key-column: a webdataset's samples have their names already",
                mend="leave them out; --label-column and --caption-column name a field of the json",
            )
        self._text = spec.text
        self.tars, held_out_by_name = tar_files(spec)
        self._field = spec.label_column or spec.caption_column
        own = _own_set(self.tars)
        self.classes = own.classes if own else None
        self.parent = {"fingerprint": own.fingerprint, "level": self._level(own)} if own else None
        self.kind: Kind = self._find_kind(spec)
        self.held_out = held_out_by_name or bool(own and own.held_out)

    def __iter__(self) -> Iterator[Example]:
        for tar in self.tars:
            descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for sample in tar_samples(walk(tar)):
                    image = sample.image()
                    if image is None:
                        raise UserError(
                            f"{tar}: sample {sample.base!r} has no image", mend="leave the tar out"
                        )
                    supervision = self.supervision(sample, descriptor, tar)
                    yield Example(sample.base, supervision, ByteRange(str(tar), image.offset, image.size))
            finally:
                os.close(descriptor)

    def _level(self, own: SetInfo) -> str:
        """Return the level of a set's labels that are read: that of the field named, else of the members."""
        levels = own.all_levels().values()
        return next((level.name for level in levels if level.column == self._field), own.primary)

    def _find_kind(self, spec: SourceSpec) -> Kind:
        if spec.label_column and spec.caption_column:
            raise UserError("--label-column and --caption-column: both named", mend="name one of them")
        if self._field:
            return "class" if spec.label_column else "caption"
        first = next(iter(tar_samples(walk(self.tars[0]))), None)
        members = first.members if first else {}
        if "cls" in members:
            return "class"
        if "txt" in members:
            return "caption"
        found = ", ".join(members) or "nothing"
        raise UserError(
            f"--source {self._text}: the first sample has neither .cls nor .txt but {found}",
            mend="name a field of its .json with --label-column or --caption-column",
        )

    def supervision(self, sample: TarSample, descriptor: int, tar: Path) -> int | str:
        """Return a sample's class or caption; ``descriptor`` is the open tar.

        Raises:
            UserError: If the sample has none.
        """
        extension = "json" if self._field else "cls" if self.kind == "class" else "txt"
        member = sample.members.get(extension)
        if member is None:
            raise UserError(f"{tar}: sample {sample.base!r} has no .{extension}", mend="leave the tar out")
        content = read_text(descriptor, member, tar)
        value: object = content
        try:
            if self._field:
                value = json.loads(content)[self._field]
            if self.kind == "caption":
                return caption_value(value)
            if isinstance(value, str):
                value = int(value) if value.strip().isdecimal() else value.strip()
            return class_value(value)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{tar}: sample {sample.base!r}: no {self._field} in its .{extension}: {error!r}",
                mend=f"name another field with --{'label' if self.kind == 'class' else 'caption'}-column",
            ) from error
        except ValueError as error:
            raise UserError(
                f"{tar}: sample {sample.base!r}: its .{extension} holds {error}", mend="leave the tar out"
            ) from error


def read_text(descriptor: int, member: Member, tar: Path) -> str:
    """Return a small member's text.

    Raises:
        UserError: If it is too large for supervision.
    """
    if member.size > _MAX_TEXT:
        raise UserError(f"{tar}: {member.name} has {member.size:,} bytes, too many for a class or a caption")
    return os.pread(descriptor, member.size, member.offset).decode("utf-8", "replace")


def tar_files(spec: SourceSpec) -> Chosen:
    """Return the tars of one split that a source's argument names, sorted within each pattern."""
    argument = str(Path(spec.require_argument("tars", "webdataset:/data/cc3m-{0000..0331}.tar")).expanduser())
    if Path(argument).is_dir():
        found = sorted(Path(argument).glob("*.tar"))
    else:
        patterns = expand(argument)
        found = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise UserError(
            f"--source {spec.text}: there is no tar {missing[0] if missing else f'in {argument}'}",
            mend="check the path",
        )
    return choose_split(spec.split, found, spec.text)


def expand(pattern: str) -> list[str]:
    """Expand ranges: ``x-{00..02}.tar`` gives three names."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    names = [
        pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :]
        for number in range(int(first), int(last) + 1)
    ]
    return [name for partly in names for name in expand(partly)]


def _own_set(tars: list[Path]) -> SetInfo | None:
    """Return the shard set that the tars belong to, if they belong to one."""
    set_file = tars[0].parent / SET_FILE
    return parse_set_info(set_file.read_bytes(), str(set_file)) if set_file.is_file() else None
