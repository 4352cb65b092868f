"""Walk the members of a tar without unpacking, refusing what a data set has no business to hold.

Members make samples by the rule that every WebDataset reader uses.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nml.errors import UserError
from nml.images import EXTENSIONS
from nml.remote_files import AnyPath
from shards.tar import BLOCK
from shards.tarbytes import TarBytes

_REGULAR = (b"0", b"\0", b"7")
_FOLDER = b"5"
_PAX = (b"x", b"g")
_LONG_NAME = b"L"
_NAMES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_OCTAL = re.compile(rb"[0-7]+")
_PAX_SIZE = re.compile(rb"\d{1,19}")
# A pax header holds names and times; a larger one is an attack or garbage.
_MAX_EXTENSION = 1 << 20
# Where another tar may begin that was put behind one with `cat`: a last record is filled up to ten kilobytes.
_BEHIND = 64 << 10


class Member(NamedTuple):
    """A regular file of a tar.

    Attributes:
        name: As stored, relative, without ``..``.
        offset: Where its content starts.
        size: Bytes of content.
    """

    name: str
    offset: int
    size: int


@dataclass
class Passed:
    """What was passed over in the tars of a source, and is told once at its end.

    Attributes:
        members: Members that are no part of a sample, counted by their ending.
        unended: Tars without an end mark: whole as far as they go, and perhaps cut short.
        behind: Tars with something behind their end mark.
    """

    members: Counter[str] = field(default_factory=Counter)
    unended: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)

    @classmethod
    def of_all(cls, each: Sequence[Passed]) -> Passed:
        """Return what was passed over in several tars together."""
        joined = cls()
        for one in each:
            joined.members.update(one.members)
            joined.unended += one.unended
            joined.behind += one.behind
        return joined

    def tell(self, shown: str) -> None:
        """Say what was passed over, a line a kind; ``shown`` is what a message calls the source."""
        if self.members:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(self.members.items()))
            print(f"passed over {self.members.total():,} members of tars: {kinds}", file=sys.stderr)
        for tars, what in (
            (self.unended, "end without an end mark: they were read to their end, and may be cut short"),
            (self.behind, "hold more behind their end mark, which was not read, as if put together with cat"),
        ):
            if tars:
                print(f"{shown}: {len(tars):,} tars {what}; the first: {tars[0]}", file=sys.stderr)


def walk(tar: str | AnyPath | TarBytes, passed: Passed | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar, in order.

    Args:
        tar: The tar, or its path.
        passed: Where a missing end mark is noted, and what follows one; None to refuse a missing one.

    Raises:
        UserError: If the tar is damaged or cut short, or a member is a link, a device or lies outside
            (``../x``, ``/x``).
    """
    if isinstance(tar, TarBytes):
        yield from _walk(tar, passed)
    else:
        with TarBytes(tar) as opened:
            yield from _walk(opened, passed)


def _walk(tar: TarBytes, passed: Passed | None) -> Iterator[Member]:
    descriptor, path = tar.descriptor, tar.path
    position = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        tar.reach(position + BLOCK)
        block = os.pread(descriptor, BLOCK, position)
        if not block.strip(b"\0"):
            if len(block) == BLOCK:
                tar.reach(position + _BEHIND)
                if passed is not None and os.pread(descriptor, _BEHIND, position).strip(b"\0"):
                    passed.behind.append(str(path))
            elif passed is None:
                raise _damaged(path, position, "the end-of-archive mark is missing: the tar is cut short")
            else:
                passed.unended.append(str(path))
            return
        if len(block) < BLOCK:
            raise _damaged(path, position, "a header is cut short")
        name, size, kind = _parse(block, path, position)
        content = position + BLOCK
        if kind == _LONG_NAME or kind in _PAX:
            if size > _MAX_EXTENSION:
                raise _damaged(path, content, f"an extension header of {size} bytes")
            tar.reach(content + size)
            extension = os.pread(descriptor, size, content)
            position = content + size + -size % BLOCK
            if kind == _LONG_NAME:
                long_name = extension.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                try:
                    long_name, long_size = _pax(extension, long_name)
                except ValueError as error:
                    raise _damaged(path, content, str(error)) from error
            continue
        name, size = long_name or name, size if long_size is None else long_size
        long_name = long_size = None
        if kind != _FOLDER:
            _check_safe(name, kind, path)
        if not tar.reach(content + size):
            raise _damaged(path, content, f"{name} ends after the file does: the tar is cut short")
        position = content + size + -size % BLOCK
        if kind == _FOLDER:
            continue
        yield Member(name, content, size)


def _parse(block: bytes, path: str | AnyPath, position: int) -> tuple[str, int, bytes]:
    """Return name, size and type of a header whose checksum holds."""
    stored = block[148:156].strip(b" \0")
    if not _OCTAL.fullmatch(stored):
        raise _damaged(path, position, "a header is damaged")
    if int(stored, 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise _damaged(path, position, "a header's checksum does not match")
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0") if block[257:263] == b"ustar\0" else b""
    full = prefix + b"/" + name if prefix else name
    text = full.decode("utf-8", "replace")
    size = _size(block[124:136])
    if size is None:
        raise _damaged(path, position, f"the size of {text!r} is no number of bytes")
    return text, size, block[156:157]


def _size(field: bytes) -> int | None:
    """Return a header's size; None if it is none: a negative one would send a reader back for ever."""
    # Sizes of 8 GiB and above are a binary number marked by the first bit; 0xff marks a negative one.
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    return int(digits, 8) if _OCTAL.fullmatch(digits) else None


def _pax(extension: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Return the path and size that a pax header sets.

    Raises:
        ValueError: If a record is none, or its size is no number of bytes.
    """
    size = None
    position = 0
    extension = extension.rstrip(b"\0")
    while position < len(extension):
        match = _PAX_RECORD.match(extension, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(extension):
            raise ValueError("an extension header's record is damaged")
        value = extension[match.end() : end - 1]
        if match[2] == b"path":
            name = value.decode("utf-8", "replace")
        elif match[2] == b"size":
            if not _PAX_SIZE.fullmatch(value):
                raise ValueError(f"an extension header's size is {value[:20]!r}")
            size = int(value)
        position = end
    return name, size


def _check_safe(name: str, kind: bytes, path: str | AnyPath) -> None:
    if kind not in _REGULAR:
        what = _NAMES.get(kind, f"of type {kind!r}")
        raise _refused(path, f"member {name!r} is {what}")
    if name.startswith("/") or ".." in name.split("/"):
        raise _refused(path, f"member {name!r} lies outside the archive")


def _refused(path: str | AnyPath, what: str) -> UserError:
    return UserError(
        f"{path}: {what}", possible="regular files such as 0001.jpg, 0001.cls", mend="leave the tar out"
    )


def _damaged(path: str | AnyPath, position: int, what: str) -> UserError:
    return UserError(f"{path}: damaged at byte {position:,}: {what}", mend="fetch or write the tar again")


_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
# What samples are made of; members of other kinds (features, weights, notes) are nothing that is read here.
_SUPERVISION = ("cls", "txt", "json")
_READ = frozenset((*EXTENSIONS, *_SUPERVISION))


class TarSample(NamedTuple):
    """Adjacent members with one base name.

    Attributes:
        base: The name up to the first dot of its last part.
        members: By extension, lower case.
    """

    base: str
    members: dict[str, Member]

    def image(self) -> Member | None:
        """Return the image member, such as ``KEY.jpg`` or else ``KEY.input.jpg``, or None."""
        plain = (self.members[name] for name in EXTENSIONS if name in self.members)
        longer = (self.members[name] for name in self.members if name.rpartition(".")[2] in EXTENSIONS)
        return next(plain, None) or next(longer, None)


def tar_samples(
    members: Iterable[Member], passed: Passed | None = None, wanted: Collection[str] = ()
) -> Iterator[TarSample]:
    """Yield samples: runs of adjacent members whose names agree up to the first dot.

    Args:
        members: The members of a tar.
        passed: Where members are counted that are no part of a sample.
        wanted: Extensions that are read besides images, ``cls``, ``txt`` and ``json``.
    """
    sample: TarSample | None = None
    for member in members:
        match = _NAME.fullmatch(member.name)
        last = member.name.rpartition("/")[2]
        # Names starting with a dot or two underscores carry no sample (._x of macOS, __meta__).
        if last.startswith((".", "__")):
            continue
        extension = match[2].lower() if match else ""
        ending = extension.rpartition(".")[2]
        if match is None or (ending not in _READ and extension not in wanted):
            if passed is not None:
                passed.members[f".{ending}" if ending else "without an ending"] += 1
            continue
        base = match[1]
        if sample is None or sample.base != base or extension in sample.members:
            if sample is not None:
                yield sample
            sample = TarSample(base, {})
        sample.members[extension] = member
    if sample is not None:
        yield sample
