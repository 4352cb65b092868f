"""Existing WebDataset tars: an image and a ``.cls``, a ``.txt`` or a ``.json`` field a sample.

``webdataset:PATH``, where PATH is a tar, a folder of tars, a pattern with ``*``, or a range such as
``cc12m-{0000..0099}.tar``. Image bytes are only pointed at. A shard set of this project is such a
folder too; its own noise is known, and noising it again must be asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nml.errors import UserError
from nml.labels import caption_value, class_of_text, class_value
from nml.sources import ByteRange, Example, Kind, SourceSpec
from nml.untrusted import parse_json
from shards.sources.columns import LABEL
from shards.sources.files import files_of
from shards.sources.own_set import OwnSet
from shards.tarwalk import Member, TarSample, tar_samples, walk

_WHOLE = re.compile(r"-?[0-9]{1,18}")
# Captions and metadata; a larger member is no supervision.
_MAX_TEXT = 1 << 20


class WebDatasetSource:
    """Samples of WebDataset tars, in order of the tars' names; their class is a .cls or a field of .json."""

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns("label", "caption")
        self._spec = spec
        self._replaced = 0
        self.tars, held_out_by_name = files_of(spec, "*.tar")
        self._field = spec.label_column or spec.caption_column
        self.kind: Kind = self._find_kind()
        self._own = OwnSet.around(self.tars[0])
        own = self._own.info if self._own else None
        self.classes = own.classes if own else None
        self.parent = (
            {"fingerprint": self._own.info.fingerprint, "level": self._own.level(self._field).name}
            if self._own
            else None
        )
        self.held_out = held_out_by_name or bool(own and own.held_out)

    def __iter__(self) -> Iterator[Example]:
        for tar in self.tars:
            if self._own:
                self._own.check_size(tar)
            with tar.open("rb", buffering=0) as file:
                for place, sample in enumerate(tar_samples(walk(tar))):
                    image = sample.image()
                    if image is None:
                        refused = UserError(
                            f"{tar}: sample {sample.base!r} has no image",
                            mend="leave the tar out, or pack it anew with each sample's files side by side",
                        )
                        self._spec.refuse(sample.base, "missing image", refused)
                        continue
                    try:
                        supervision = self.supervision(sample, file.fileno(), tar)
                    except UserError as error:
                        self._spec.refuse(sample.base, f"no {self.kind}", error)
                        continue
                    if self._own and self._spec.end == "set":
                        self._own.check(tar, place, sample.base, image, supervision, self._field)
                    # `tar cf a.tar .` begins all names with a dot; published keys of sets were made with it.
                    name = sample.base if self._spec.end == "set" else sample.base.removeprefix("./")
                    yield Example(name, supervision, ByteRange(str(tar), image.offset, image.size))
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
            return "class" if spec.label_column else "caption"
        first = next(iter(tar_samples(walk(self.tars[0]))), None)
        members = first.members if first else {}
        if "cls" in members:
            return "class"
        if "txt" in members and spec.end == "set":
            return "caption"
        fields: object = {}
        if "json" in members:
            with self.tars[0].open("rb", buffering=0) as file, contextlib.suppress(ValueError):
                fields = parse_json(read_text(file.fileno(), members["json"], self.tars[0]))
        self._field = next((name for name in LABEL if isinstance(fields, dict) and name in fields), "")
        if self._field:
            return "class"
        raise UserError(
            f"{spec.shown}: the first sample has neither .cls nor .txt but {', '.join(members) or 'nothing'}",
            mend=f"name a field of its .json: {spec.flag('label')}FIELD"
            + (f" or {spec.flag('caption')}FIELD" if spec.end == "set" else ""),
        )

    def supervision(self, sample: TarSample, descriptor: int, tar: Path) -> int | str:
        """Return a sample's class or caption; ``descriptor`` is the open tar.

        Raises:
            UserError: If the sample has none.
        """
        extension = "json" if self._field else "cls" if self.kind == "class" else "txt"
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
                value = parse_json(content)[self._field]
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


def _class_of(value: object) -> int | str:
    """Return a class; texts of digits are numbers with zeros in front, too, as WebDataset reads a .cls."""
    if not isinstance(value, str):
        return class_value(value)
    text = value.strip()
    return class_value(int(text)) if _WHOLE.fullmatch(text) else class_of_text(text)


def read_text(descriptor: int, member: Member, tar: Path) -> str:
    """Return a small member's text.

    Raises:
        UserError: If it is too large for supervision.
    """
    if member.size > _MAX_TEXT:
        raise UserError(f"{tar}: {member.name} has {member.size:,} bytes, too many for a class or a caption")
    return os.pread(descriptor, member.size, member.offset).decode("utf-8", "replace")
