"""What verify holds the images of a shard to besides their hashes: their size, and that they decode."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.decode import BadImage, decode_pixels, image_size
from shards.packing import ORIGINAL_SHA256


def too_large(path: Path, rows: pa.Table, resized: dict[str, Any]) -> str:
    """Tell of images that are larger than set.json says, or were changed and are no JPEG."""
    names = ("key", "image_extension", "image_offset", "image_size", "sha256", ORIGINAL_SHA256)
    with path.open("rb") as file:
        for key, extension, offset, size, *hashes in zip(
            *(rows[name].to_pylist() for name in names), strict=True
        ):
            file.seek(offset)
            try:
                side = min(image_size(file.read(size)))
            except (BadImage, OSError) as error:
                return f"{path}: {key}: {error}"
            if side > resized["short_side"]:
                return f"{path}: {key} has a short side of {side}, set.json says {resized['short_side']}"
            shrunk = side == resized["short_side"] or resized.get("upright")
            if len({*hashes}) > 1 and not (shrunk and extension == "jpg"):
                return f"{path}: {key} is not what it was, and was not made smaller"
    return ""


def undecodable(path: Path, rows: pa.Table) -> str:
    """Decode every image of a shard as reading does, and tell of those that cannot be."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"

    def problem(offset: int, size: int) -> str:
        try:
            decode_pixels(os.pread(descriptor, max(size, 0), max(offset, 0)))
        except BadImage as error:
            return str(error)
        return ""

    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            places = (rows[name].to_pylist() for name in ("image_offset", "image_size"))
            problems = list(pool.map(problem, *places))
    finally:
        os.close(descriptor)
    bad = [row for row, each in enumerate(problems) if each]
    if not bad:
        return ""
    first = f"{rows['key'][bad[0]]}: {problems[bad[0]]}"
    return f"{path}: {len(bad):,} images cannot be decoded, the first of them {first}"
