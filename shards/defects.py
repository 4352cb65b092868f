"""Samples that cannot be taken: found in one pass over a source, listed, and left out only if allowed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, cast

from nml.delimited import comma_separated
from nml.errors import UserError
from nml.files import write_bytes
from nml.images import BadImage, image_extension
from nml.sources import ByteRange, Defect, Example, content_of
from shards.decode import decode_pixels
from shards.open_files import OpenFiles

# Bytes that tell an image's format.
_HEAD = 16
_THREADS = 8


class Checks(NamedTuple):
    """What is asked of the samples of a source.

    Attributes:
        decode: Whether every image must be decoded.
        skip: How many bad samples may be left out.
        file: Where they are listed; None for nowhere, and where none may be left out.
    """

    decode: bool = False
    skip: int = 0
    file: Path | None = None


def image_defects(examples: Sequence[Example], *, decode: bool) -> list[Defect | None]:
    """Return what is wrong with each image, where something is.

    Args:
        examples: Samples with their images, or where those lie.
        decode: Whether to decode them; else their first bytes are looked at.
    """
    size = max(1, -(-len(examples) // _THREADS))
    parts = [examples[start : start + size] for start in range(0, len(examples), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        # Where images lie on a file system of the network, its answers are waited for side by side.
        found = pool.map(lambda part: _defects(part, decode), parts)
        return [defect for part in found for defect in part]


def _defects(examples: Sequence[Example], decode: bool) -> list[Defect | None]:
    found = []
    # Many images may lie in one file.
    with closing(OpenFiles(1, str)) as files:
        for example in examples:
            found.append(_image_defect(example, decode, files))
    return found


def _image_defect(example: Example, decode: bool, files: OpenFiles) -> Defect | None:
    image, where = example.image, "--source"
    try:
        if (content := content_of(image)) is not None:
            size, data = len(content), content
        else:
            # A source that is read from start to end gives bytes or ranges of them, no cells.
            where, offset, size = cast("ByteRange", image)
            # Nothing is opened for nothing: a pipe that is called an image would be waited for.
            data = files[where].read(size if decode else min(size, _HEAD), offset) if size else b""
        if not size:
            return _defect(example, "empty image", where, "has an image of 0 bytes")
        if image_extension(data[:_HEAD]) is None:
            return _defect(example, "no image", where, "is not an image of a known format")
        if decode:
            decode_pixels(data)
    except OSError as error:
        return _defect(example, "unreadable image", where, f"cannot be read: {error.strerror}")
    except BadImage as error:
        return _defect(example, "undecodable image", where, f"cannot be decoded: {error}")
    return None


def _defect(example: Example, kind: str, where: str, what: str) -> Defect:
    possible = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM" if kind == "no image" else ""
    error = UserError(
        f"{where}: sample {example.name!r} {what}",
        possible=possible,
        mend="mend it or remove it from the source",
    )
    return Defect(example.name, kind, error)


def settle(defects: Sequence[Defect], samples: int, checks: Checks) -> None:
    """List the bad samples of a source, and go on without them if there are not too many.

    Args:
        defects: What was found.
        samples: How many samples are sound.
        checks: What was asked.

    Raises:
        UserError: If there are more than may be left out.
    """
    if not defects:
        if checks.file is not None:
            # Of a source that has been mended since.
            checks.file.unlink(missing_ok=True)
        return
    listed = ""
    if checks.file is not None:
        _write_list(checks.file, defects)
        listed = f", listed in {checks.file}"
    kinds = ", ".join(
        f"{count:,} {kind}" for kind, count in Counter(each.kind for each in defects).most_common()
    )
    summary = f"{len(defects):,} of {len(defects) + samples:,} samples are bad ({kinds}){listed}"
    if samples and len(defects) <= checks.skip:
        print(f"left out: {summary}", file=sys.stderr)
        return
    first = defects[0].error
    if not samples or checks.file is None:
        # Leaving them out would leave nothing, or is not offered.
        raise UserError(first.what, possible=first.possible, mend=first.mend) from first
    if len(defects) == 1:
        leave_out = "leave it out with --skip-bad 1"
        raise UserError(
            first.what,
            possible=first.possible,
            mend=f"{first.mend}; or {leave_out}" if first.mend else leave_out,
        ) from first
    how = f" ({first.mend})" if first.mend else ""
    raise UserError(
        f"{summary}; the first: {first.what}",
        possible=first.possible,
        mend=f"mend them{how}, or leave them out with --skip-bad {len(defects)}",
    ) from first


def _write_list(path: Path, defects: Sequence[Defect]) -> None:
    lines = [["sample", "kind", "what"], *([each.name, each.kind, each.error.what] for each in defects)]
    # Names that are no UTF-8 are among what is listed.
    write_bytes(path, comma_separated(lines).encode(errors="backslashreplace"))
