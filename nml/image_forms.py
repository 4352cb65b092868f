"""Which form an encoded image has that is not read as everybody would expect, told by its header alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

TURNED = "with an EXIF orientation, which is not applied but by --upright"
DEEP = "with 16 bits a sample, of which the upper 8 are read"
FLOATS = "of floats, read as 0 to 1 where none is above 1, else as 0 to 255"
CMYK = "in CMYK, which is read as RGB without its profile"
CLEAR = "with transparency, which is left out"
# Tags of a TIFF's directory, and values of theirs.
_BITS, _PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 274, 338, 339
_TAGS = frozenset((_BITS, _PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES, _SAMPLE_FORMAT))
_WHOLE = {3: "H", 4: "I"}
_SEPARATED, _FLOATS, _ALPHA = 5, 3, (1, 2)
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
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            yield from _of_webp(data)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            yield from _of_tiff(data)
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


def _of_webp(data: memoryview) -> Iterator[str]:
    kind = data[12:16]
    if (kind == b"VP8L" and data[24] & 0x10) or (kind == b"VP8X" and data[20] & 0x10):
        yield CLEAR
    if kind != b"VP8X" or not data[20] & 0x08:
        return
    position = 12
    # EXIF stands behind the pixels.
    for _ in range(_MOST_SEGMENTS):
        (length,) = struct.unpack_from("<I", data, position + 4)
        if data[position : position + 4] == b"EXIF":
            content = data[position + 8 : position + 8 + length]
            if orientation(content[len(_EXIF) :] if content[: len(_EXIF)] == _EXIF else content) != 1:
                yield TURNED
            return
        position += 8 + length + length % 2


def _of_tiff(data: memoryview) -> Iterator[str]:
    tags = _first_directory(data)
    if tags.get(_SAMPLE_FORMAT, 1) == _FLOATS:
        yield FLOATS
    elif tags.get(_BITS, 8) > 8:
        yield DEEP
    if tags.get(_PHOTOMETRIC) == _SEPARATED:
        yield CMYK
    if tags.get(_EXTRA_SAMPLES) in _ALPHA:
        yield CLEAR
    if _turned(tags) != 1:
        yield TURNED


def orientation(tiff: memoryview) -> int:
    """Return what the first directory of a TIFF says of the orientation, 1 (upright) to 8; 1 if nothing."""
    return _turned(_first_directory(tiff))


def _turned(tags: dict[int, int]) -> int:
    value = tags.get(_ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def _first_directory(tiff: memoryview) -> dict[int, int]:
    """Return the tags that tell of a form, with the first number of several."""
    order = "<" if tiff[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    tags = {}
    for entry in range(min(entries, 256)):
        place = directory + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, place)
        if tag not in _TAGS or kind not in _WHOLE or not count:
            continue
        code = _WHOLE[kind]
        # What takes more than four bytes does not stand in the entry.
        where = place + 8
        if count * struct.calcsize(code) > 4:
            (where,) = struct.unpack_from(f"{order}I", tiff, where)
        (tags[tag],) = struct.unpack_from(f"{order}{code}", tiff, where)
    return tags
