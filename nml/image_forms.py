"""Which form an encoded image has that is not read as everybody would expect, told by its header alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

TURNED = "with an EXIF orientation, which is not applied but by --upright"
DEEP = "with 16 bits a sample, of which the upper 8 are read"
CMYK = "in CMYK, which is read as RGB without its profile"
CLEAR = "with transparency, which is left out"
_ORIENTATION = 0x0112
_EXIF = b"Exif\0\0"
# A frame header of a JPEG but for arithmetic coding's and the tables that share its range.
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
# Headers are at the beginning; profiles and previews stand between them and the pixels.
_MOST_SEGMENTS = 64


def unusual_forms(data: memoryview) -> Iterator[str]:
    """Yield what is unusual about an encoded image, as :data:`TURNED`, :data:`DEEP` and so on; damage is not.

    Args:
        data: The image, from its first byte.
    """
    try:
        if data[:2] == b"\xff\xd8":
            yield from _of_jpeg(data)
        elif data[:4] == b"\x89PNG":
            yield from _of_png(data)
        elif data[12:16] == b"VP8X" and data[20] & 0x10:
            yield CLEAR
        elif data[:4] in (b"II*\0", b"MM\0*") and orientation(data) != 1:
            yield TURNED
    except (IndexError, struct.error):
        return


def _of_jpeg(data: memoryview) -> Iterator[str]:
    position = 2
    for _ in range(_MOST_SEGMENTS):
        if data[position] != 0xFF or data[position + 1] == 0xDA:
            return
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        if marker == 0xE1 and data[position + 4 : position + 10] == _EXIF:
            if orientation(data[position + 10 : position + 2 + length]) != 1:
                yield TURNED
        elif marker in _FRAMES and data[position + 9] == 4:
            yield CMYK
        position += 2 + length


def _of_png(data: memoryview) -> Iterator[str]:
    depth, colour = data[24], data[25]
    if depth == 16:
        yield DEEP
    if colour in (4, 6):
        yield CLEAR
    position = 8
    for _ in range(_MOST_SEGMENTS):
        (length,), kind = struct.unpack_from(">I", data, position), bytes(data[position + 4 : position + 8])
        if kind == b"IDAT":
            return
        if kind == b"tRNS":
            yield CLEAR
        if kind == b"eXIf" and orientation(data[position + 8 : position + 8 + length]) != 1:
            yield TURNED
        position += 12 + length


def orientation(tiff: memoryview) -> int:
    """Return what the first directory of a TIFF says of the orientation, 1 (upright) to 8; 1 if nothing."""
    order = "<" if tiff[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    for entry in range(min(entries, 256)):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1
