"""The part of a JPEG that a box needs, as a JPEG of its own, taken out without decoding anything.

A restart marker ends what a run of blocks has in common with those before it. Where runs end with the rows of
the image, as ``shards.write --resize`` writes them, any rectangle of runs is a JPEG: its header with another
size, and the runs with their markers counted anew. It decodes to the pixels that the whole gives there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Tables, restart intervals, what applications say, comments: a length each, by which decoders pass over them.
_SKIPPED = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_END_OF_IMAGE = b"\xff\xd9"
_RESTART = 0xD0
_COLOURS = 3
# Rows and columns that decide the chroma of those beside them: it is interpolated from the next one too.
CHROMA_CONTEXT = 2
# In blocks of 16 pixels, the likeliest first: shorter ones take more of the file, of longer ones a box needs
# more that is beside it.
_RUNS = (4, 3, 2, 5)


class Box(NamedTuple):
    """A crop in pixels of the full-size image.

    Attributes:
        left: Columns before it.
        top: Rows above it.
        width: Its columns.
        height: Its rows.
    """

    left: int
    top: int
    width: int
    height: int


class Frame(NamedTuple):
    """Where the parts of a sequential JPEG lie, whose one scan holds all components.

    Attributes:
        header: First byte of the frame header.
        scan: First byte of the entropy-coded data.
        run: Blocks of all components between two restart markers; 0 where there are none.
    """

    header: int
    scan: int
    run: int


class JpegPart(NamedTuple):
    """A rectangle of a JPEG, which is one itself.

    Attributes:
        data: The JPEG.
        left: Columns of the whole before it.
        top: Rows of the whole above it.
    """

    data: bytes | bytearray
    left: int
    top: int


def run_length(width: int) -> int:
    """Return how many blocks of 16 pixels are to stand between two restart markers; it divides a row's.

    Args:
        width: Of the image, in pixels.
    """
    blocks = -(-width // 16)
    return next((run for run in _RUNS if blocks % run == 0), 1)


def sequential_frame(data: bytes) -> Frame | None:
    """Return where the parts of a JPEG lie whose one scan holds all components; else None."""
    position, frame, run = 2, None, 0
    while position + 9 < len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1):
            frame = position
        elif marker == 0xDD:
            run = int.from_bytes(data[position + 4 : position + 6], "big")
        elif marker == 0xDA:
            whole = frame is not None and data[position + 4] == data[frame + 9]
            return Frame(frame, position + 2 + length, run) if frame is not None and whole else None
        elif marker not in _SKIPPED:
            # Progressive and other frames visit every row several times. Markers that the decoder takes for
            # others than these would have it see another frame than is seen here.
            return None
        position += 2 + length
    return None


def cut_out(data: bytes, frame: Frame, width: int, height: int, box: Box) -> JpegPart | None:
    """Return a JPEG of the blocks that a box needs; None where it cannot be had without decoding.

    Args:
        data: The whole JPEG.
        frame: Its parts.
        width: Its columns.
        height: Its rows.
        box: What is wanted of it.
    """
    if not frame.run or data[frame.header + 9] != _COLOURS or not data.endswith(_END_OF_IMAGE):
        return None
    sampling = data[frame.header + 11 : frame.header + 10 + 3 * _COLOURS : 3]
    wide, high = 8 * max(each >> 4 for each in sampling), 8 * max(each & 15 for each in sampling)
    if not wide or not high or -(-width // wide) % frame.run:
        return None
    columns, rows = -(-width // wide) // frame.run, -(-height // high)
    wide *= frame.run
    content = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(content[frame.scan : -2] == 0xFF) + frame.scan
    kinds = content[marks + 1]
    # 0 stands behind a byte of the data that only looks like the first of a marker.
    marks, kinds = marks[kinds != 0], kinds[kinds != 0]
    if len(marks) != columns * rows - 1 or (kinds != _counted(len(kinds))).any():
        return None
    left, right = _blocks(box.left, box.left + box.width, wide, columns)
    top, bottom = _blocks(box.top, box.top + box.height, high, rows)
    # What stands behind each run: a marker, and behind the last one of all the end.
    behind = np.empty(columns * rows, np.int64)
    behind[:-1], behind[-1] = marks, len(data) - 2
    table = behind.reshape(rows, columns)
    ends = (table[top:bottom, right - 1] + 2).tolist()
    if left:
        begins = (table[top:bottom, left - 1] + 2).tolist()
    else:
        begins = [int(behind[top * columns - 1]) + 2 if top else frame.scan]
        begins += (table[top : bottom - 1, -1] + 2).tolist()
    part = bytearray(data[: frame.scan])
    shifts = []
    for begin, end in zip(begins, ends, strict=True):
        shifts.append([len(part) - begin + 1])
        part += data[begin:end]
    size = min(bottom * high, height) - top * high, min(right * wide, width) - left * wide
    part[frame.header + 5 : frame.header + 9] = b"".join(each.to_bytes(2, "big") for each in size)
    places = (table[top:bottom, left:right] + np.array(shifts)).ravel()
    np.frombuffer(part, np.uint8)[places] = _counted(len(places))
    part[-2:] = _END_OF_IMAGE
    return JpegPart(part, left * wide, top * high)


@lru_cache(maxsize=512)
def _counted(count: int) -> npt.NDArray[np.uint8]:
    """Return the second bytes of so many markers, which count from 0 to 7, and again."""
    return (_RESTART + (np.arange(count) & 7)).astype(np.uint8)


def _blocks(first: int, end: int, length: int, count: int) -> tuple[int, int]:
    """Return the blocks of a length that hold a range of pixels with what decides their chroma."""
    return max(first - CHROMA_CONTEXT, 0) // length, min(-(-(end + CHROMA_CONTEXT) // length), count)
