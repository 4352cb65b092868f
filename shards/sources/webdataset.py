"""Existing WebDataset tars: an image and a ``.cls``, a ``.txt`` or a ``.json`` field a sample.

``webdataset:PATH``, where PATH is a tar, a folder of tars, a pattern with ``*``, or a range such as
``cc12m-{0000..0099}.tar``. Image bytes are only pointed at, but for those of a tar that is compressed.
A shard set of this project is such a folder too; its own noise is known, and noising it again must be
asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nml.errors import UserError
from nml.labels import caption_value, captions_value, class_of_text, class_value
from nml.remote_files import AnyPath
from nml.sources import AtHand, ByteRange, Example, Kind, SourceSpec
from nml.untrusted import parse_json
from shards.sources.columns import LABEL
from shards.sources.files import files_of
from shards.sources.own_set import OwnSet
from shards.tarbytes import TarBytes
from shards.tarwalk import Member, Passed, TarSample, tar_samples, walk

TARS = ("*.tar", "*.tar.gz", "*.tgz")
_ENDING = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_ROLES = ("image", "label", "caption")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
# Captions and metadata; a larger member is no supervision.
_MAX_TEXT = 1 << 20
# As many as the most pixels that are decoded take, twice.
_MOST_IMAGE = 1 << 30


class WebDatasetSource:
    """Samples of WebDataset tars, in order of the tars' names; their class is a .cls or a field of .json."""

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns("label", "caption", members=True)
        self._spec = spec
        self._replaced = 0
        self._passed: list[Passed] = []
        self._members = _chosen_members(spec)
        self.tars, held_out_by_name = files_of(spec, *TARS)
        self._field = spec.label_column or spec.caption_column
        self._own = OwnSet.around(self.tars)
        self.kind: Kind = self._find_kind()
        own = self._own.info if self._own else None
        if own and own.kind == "captions" and not (self._field or self._members):
            # A .txt holds the first of them alone.
            self._field, self.kind = own.all_levels()[own.primary].column, "captions"
        # Tars that were indexed where they lie hold the classes as they had them, not as numbers of the set.
        self.classes = own.classes if own and own.request else None
        self.parent = self._own.origin(self._field) if self._own else None
        self.held_out = held_out_by_name or bool(own and own.held_out)

    @property
    def asked(self) -> tuple[str, ...]:
        """What was asked for that decides what is read of a tar."""
        return self._spec.label_column, self._spec.caption_column, self._spec.members, self._field

    def __iter__(self) -> Iterator[Example]:
        for tar in self.tars:
            if self._own and isinstance(tar, Path):
                self._own.check_size(tar)
            taken = 0
            try:
                with _opened(tar) as opened:
                    for example in self._of(opened, tar):
                        yield example
                        taken += 1
            except _UnreadableTar as error:
                if self._spec.defects is None:
                    raise
                after = UserError(f"{error.what}; {taken:,} samples before it were read", mend=error.mend)
                self._spec.refuse(tar.name, "unreadable tar", after)
        self.tell()

    def _of(self, opened: TarBytes, tar: AnyPath) -> Iterator[Example]:
        """Yield the samples of a tar.

        Raises:
            _UnreadableTar: If what follows cannot be read.
        """
        for place, sample in enumerate(self.samples(opened)):
            image = self.image(sample)
            if image is None:
                refused = UserError(
                    f"{tar}: sample {sample.base!r} has no image",
                    mend="leave the tar out, or pack it anew with each sample's files side by side",
                )
                self._spec.refuse(sample.base, "missing image", refused)
                continue
            try:
                supervision = self.supervision(sample, opened.descriptor, tar)
            except UserError as error:
                self._spec.refuse(sample.base, f"no {self.kind}", error)
                continue
            if self._own and self._spec.end == "set" and isinstance(tar, Path):
                self._own.check(tar, place, sample.base, image, supervision, self._field)
            # `tar cf a.tar .` begins all names with a dot; published keys of sets were made with it.
            name = sample.base if self._spec.end == "set" else sample.base.removeprefix("./")
            if not opened.compressed:
                lies = ByteRange(str(tar), image.offset, image.size)
                local = isinstance(tar, Path)
                content = lies if local else AtHand(_read(opened.descriptor, image, tar), lies)
                yield Example(name, supervision, content)
                continue
            if len(self.tars) > 1:
                # Tars often count from 0 each, and of bytes that lie in none nobody could tell of which.
                name = f"{_ENDING.sub('', tar.name)}/{name}"
            yield Example(name, supervision, _read(opened.descriptor, image, tar))

    def samples(self, opened: TarBytes) -> Iterator[TarSample]:
        """Yield the samples of a tar; what is no part of one is counted, and told by :meth:`tell`.

        Raises:
            UserError: If what follows cannot be read.
        """
        # One a tar: several threads may walk one each.
        passed = Passed()
        self._passed.append(passed)
        try:
            yield from tar_samples(walk(opened, passed), passed, set(self._members.values()))
        except UserError as error:
            raise _UnreadableTar(error.what, possible=error.possible, mend=error.mend) from error

    def image(self, sample: TarSample) -> Member | None:
        """Return a sample's image; None if it has none."""
        chosen = self._members.get("image")
        return sample.members.get(chosen) if chosen else sample.image()

    def tell(self) -> None:
        """Tell what was passed over, and how many captions hold bytes that are no UTF-8."""
        Passed.of_all(self._passed).tell(self._spec.shown)
        self.tell_of_replaced()

    def tell_of_replaced(self) -> None:
        """Tell how many of the captions that were read hold bytes that are no UTF-8."""
        if self._replaced:
            print(
                f"{self._replaced:,} captions hold U+FFFD, which stands for bytes that are no UTF-8",
                file=sys.stderr,
            )

    def _find_kind(self) -> Kind:
        """Return what supervises the samples, and settle on the field of the .json that holds it."""
        spec = self._spec
        if spec.label_column and spec.caption_column:
            raise UserError("--label-column and --caption-column: both named", mend="name one of them")
        if self._field:
            if spec.label_column:
                return "class"
            _, fields = self._first()
            several = isinstance(fields, dict) and isinstance(fields.get(self._field), list)
            return "captions" if several else "caption"
        if "label" in self._members:
            return "class"
        if "caption" in self._members:
            return "caption"
        members, fields = self._first()
        self._refuse_level_unknown(members, fields)
        if "cls" in members:
            return "class"
        if "txt" in members and spec.end == "set":
            return "caption"
        self._field = next((name for name in LABEL if isinstance(fields, dict) and name in fields), "")
        if self._field:
            return "class"
        raise UserError(
            f"{spec.shown}: the first sample has neither .cls nor .txt but {', '.join(members) or 'nothing'}",
            mend=f"name a field of its .json: {spec.flag('label')}FIELD"
            + (f" or {spec.flag('caption')}FIELD" if spec.end == "set" else "")
            + f"; or its members: {spec.flag('members')}image=input.jpg,label=class.txt",
        )

    def _refuse_level_unknown(self, members: dict[str, Member], fields: object) -> None:
        """Raise a UserError for the tars of a set without set.json, which tells the level of ``.cls``."""
        if self._own or not isinstance(fields, dict):
            return
        kinds: tuple[tuple[Literal["label", "caption"], str], ...] = (("label", "cls"), ("caption", "txt"))
        for kind, extension in kinds:
            levels = [name for name in fields if name.startswith(f"{kind}_")]
            # As shards.packing writes it, and nothing else in it.
            if extension in members and levels and {*fields} == {"key", kind, *levels}:
                raise UserError(
                    f"{self._spec.shown}: the tars of a shard set without its set.json, which tells whether "
                    f"their .{extension} holds {kind} or a noisy level ({', '.join(levels)})",
                    mend=f"name the set, or copy all its files; or say which: {self._spec.flag(kind)}{kind}",
                )

    def _first(self) -> tuple[dict[str, Member], object]:
        """Return the members of the first sample, and what its ``.json`` holds.

        Raises:
            UserError: If no tar can be read; where one can, the others are defects of the pass over them.
        """
        unreadable = None
        for tar in self.tars:
            try:
                with TarBytes(tar) as opened:
                    sample = next(tar_samples(walk(opened, Passed())), None)
                    if sample is None:
                        continue
                    fields: object = {}
                    if "json" in sample.members:
                        with contextlib.suppress(ValueError):
                            fields = parse_json(read_text(opened.descriptor, sample.members["json"], tar))
                    return sample.members, fields
            except UserError as error:
                if self._spec.defects is None:
                    raise
                unreadable = unreadable or error
        if unreadable is not None:
            raise unreadable
        return {}, {}

    def supervision_member(self, sample: TarSample) -> Member | None:
        """Return the member that holds a sample's class or caption alone; None where its ``.json`` does."""
        return sample.members.get(self._chosen() or self._usual())

    def _chosen(self) -> str | None:
        return self._members.get("label" if self.kind == "class" else "caption")

    def _usual(self) -> str:
        return "cls" if self.kind == "class" else "txt"

    def supervision(self, sample: TarSample, descriptor: int, tar: AnyPath) -> Any:
        """Return a sample's class or caption, or what stands there; ``descriptor`` is the open tar.

        Raises:
            UserError: If the sample has none.
        """
        extension = self._chosen() or ("json" if self._field else self._usual())
        member = sample.members.get(extension)
        if member is None:
            raise UserError(
                f"{tar}: sample {sample.base!r} has no .{extension}",
                mend="leave the tar out, or pack it anew with each sample's files side by side",
            )
        content = read_text(descriptor, member, tar)
        value: object = content
        try:
            if self._field:
                fields = parse_json(content)
                several = self._spec.label_columns
                value = tuple(fields[name] for name in several) if several else fields[self._field]
            if self._spec.target != "classification":
                return value
            if self.kind == "captions":
                captions = captions_value(value)
                self._replaced += sum("\ufffd" in caption for caption in captions)
                return captions
            if self.kind == "caption":
                caption = caption_value(value)
                self._replaced += "\ufffd" in caption
                return caption
            return _class_of(value)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{tar}: sample {sample.base!r}: no {self._field} in its .{extension}: {error!r}",
                mend="name another field with "
                f"{self._spec.flag('label' if self.kind == 'class' else 'caption')}FIELD",
            ) from error
        except ValueError as error:
            raise UserError(
                f"{tar}: sample {sample.base!r}: its .{extension} holds {error}", mend="leave the tar out"
            ) from error


class _UnreadableTar(UserError):
    """A tar of which what follows cannot be read."""


def _opened(tar: AnyPath) -> TarBytes:
    try:
        return TarBytes(tar)
    except UserError as error:
        raise _UnreadableTar(error.what, possible=error.possible, mend=error.mend) from error


def _chosen_members(spec: SourceSpec) -> dict[str, str]:
    """Return the extensions that the user named, by what they hold."""
    chosen: dict[str, str] = {}
    # In a task, commas end an option.
    for part in filter(None, re.split("[,+]", spec.members)):
        role, equals, extension = part.partition("=")
        if role not in _ROLES or not equals or not extension or role in chosen:
            raise UserError(
                f"{spec.flag('members')}{spec.members}: {part!r} does not name a member",
                possible=", ".join(f"{role}=EXTENSION" for role in _ROLES) + ", each once",
                mend="for example image=input.jpg,caption=outputs.txt",
            )
        chosen[role] = extension.lower().lstrip(".")
    for role in ("label", "caption"):
        if role in chosen and (spec.label_column or spec.caption_column or {"label", "caption"} <= {*chosen}):
            raise UserError(
                f"{spec.flag('members')}{spec.members}: the {role} is named twice",
                mend="name a member, or a field of the .json, of a class or a caption",
            )
    return chosen


def _read(descriptor: int, member: Member, tar: AnyPath) -> bytes:
    if member.size > _MOST_IMAGE:
        raise _UnreadableTar(f"{tar}: {member.name} has {member.size:,} bytes, too many for an image")
    return os.pread(descriptor, member.size, member.offset)


def _class_of(value: object) -> int | str:
    """Return a class; texts of digits are numbers with zeros in front, too, as WebDataset reads a .cls."""
    if not isinstance(value, str):
        return class_value(value)
    text = value.strip()
    return class_value(int(text)) if _WHOLE.fullmatch(text) else class_of_text(text)


def read_text(descriptor: int, member: Member, tar: AnyPath) -> str:
    """Return a small member's text.

    Raises:
        UserError: If it is too large for supervision.
    """
    if member.size > _MAX_TEXT:
        raise UserError(f"{tar}: {member.name} has {member.size:,} bytes, too many for a class or a caption")
    return os.pread(descriptor, member.size, member.offset).decode("utf-8", "replace")
