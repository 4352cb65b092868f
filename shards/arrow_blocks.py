"""Whether a record batch of an Arrow file is packed, told without unpacking it.

Arrow unpacks a batch as soon as it is asked for, and a megabyte may hold gigabytes. What is written here is
never packed. PyArrow does not tell, so the three flatbuffers that do are read: the footer, which says where
each batch lies, the message there, and its record batch, whose fourth field is the compression.
"""

from __future__ import annotations

import struct

_END = struct.Struct("<i6s")
_MAGIC = b"ARROW1"
# Of a footer and a record batch in Arrow's Schema.fbs, File.fbs and Message.fbs.
_RECORD_BATCHES, _HEADER, _COMPRESSION = 3, 2, 3
# Offset, length of the metadata and its padding, length of the body.
_BLOCK = struct.Struct("<qi4xq")
_CONTINUATION = b"\xff\xff\xff\xff"


def is_packed(file: memoryview, number: int) -> bool:
    """Whether record batch ``number`` of an Arrow file is compressed.

    Raises:
        ValueError: If the file has no such batch, or is damaged.
    """
    try:
        size, magic = _END.unpack(file[-_END.size :])
        if magic != _MAGIC or size <= 0:
            raise ValueError("it has no footer")
        footer = file[len(file) - _END.size - size : len(file) - _END.size]
        blocks = _target(footer, _field(footer, _root(footer), _RECORD_BATCHES))
        (count,) = struct.unpack_from("<I", footer, blocks)
        if not 0 <= number < count:
            raise ValueError(f"it has no batch {number}")
        offset, length, _ = _BLOCK.unpack_from(footer, blocks + 4 + _BLOCK.size * number)
        if offset < 0 or length < 0:
            raise ValueError("a batch lies outside of it")
        message = file[offset : offset + length]
        message = message[8:] if bytes(message[:4]) == _CONTINUATION else message[4:]
        batch = _target(message, _field(message, _root(message), _HEADER))
        return bool(_field(message, batch, _COMPRESSION, optional=True))
    except struct.error as error:
        raise ValueError(f"it ends too early: {error}") from error


def _root(buffer: memoryview) -> int:
    return _target(buffer, 0)


def _target(buffer: memoryview, place: int) -> int:
    """Return where an offset points to."""
    (offset,) = struct.unpack_from("<I", buffer, place)
    return place + int(offset)


def _field(buffer: memoryview, table: int, number: int, *, optional: bool = False) -> int:
    """Return where a field of a table lies; 0 for an optional one that is not there."""
    (back,) = struct.unpack_from("<i", buffer, table)
    vtable = table - back
    if vtable < 0:
        raise ValueError("a table lies outside of it")
    (size,) = struct.unpack_from("<H", buffer, vtable)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", buffer, vtable + place) if place < size else (0,)
    if not offset and not optional:
        raise ValueError("a field is missing")
    return table + offset if offset else 0
