"""timm's operations on colours, on planes: each writes into the planes that it is given and returns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pretrain.planar_scratch import Planes, scratch, store


def invert(planes: Planes, **_: Any) -> Planes:
    """Return 255 - x."""
    return np.subtract(255, planes, out=planes)


def posterize(planes: Planes, bits: int, **_: Any) -> Planes:
    """Keep the highest bits; none where timm asks for none, which Pillow refuses of late."""
    return np.bitwise_and(planes, 256 - (1 << max(0, 8 - bits)), out=planes)


def solarize(planes: Planes, threshold: int, **_: Any) -> Planes:
    """Invert what is not below the threshold."""
    if threshold < 256:
        # 255 - x is x with all bits turned.
        np.bitwise_xor(planes, 255 * (planes >= threshold).view(np.uint8), out=planes)
    return planes


def solarize_add(planes: Planes, add: int, threshold: int = 128, **_: Any) -> Planes:
    """Add to what is below the threshold, of half the range."""
    return np.add(planes, np.uint8(add) * (planes < threshold).view(np.uint8), out=planes)


def auto_contrast(planes: Planes, **_: Any) -> Planes:
    """Stretch each plane to the whole range."""
    for plane in planes:
        low, high = int(plane.min()), int(plane.max())
        if high > low:
            scale = 255.0 / (high - low)
            table = np.arange(256) * scale + -low * scale
            _look_up(plane, table.astype(np.int64))
    return planes


def equalize(planes: Planes, **_: Any) -> Planes:
    """Make the histogram of each plane flat."""
    for plane in planes:
        counts = np.array(Image.fromarray(plane).histogram())
        found = counts[counts > 0]
        step = int(found[:-1].sum()) // 255
        if step:
            before = np.cumsum(counts) - counts
            _look_up(plane, (step // 2 + before) // step)
    return planes


def color(planes: Planes, factor: float, **_: Any) -> Planes:
    """Blend with the grey image."""
    return _blended(_grey(planes), planes, factor)


def contrast(planes: Planes, factor: float, **_: Any) -> Planes:
    """Blend with the mean of the grey image."""
    grey = _grey(planes)
    mean = int(int(grey.sum(dtype=np.int64)) / grey.size + 0.5)
    return _blended(np.full((1, 1), mean, np.uint8), planes, factor)


def brightness(planes: Planes, factor: float, **_: Any) -> Planes:
    """Blend with black."""
    return _blended(np.zeros((1, 1), np.uint8), planes, factor)


def sharpness(planes: Planes, factor: float, **_: Any) -> Planes:
    """Blend with a smoothed image, whose edge is that of the image."""
    return _blended(_smooth(planes), planes, factor)


def _look_up(plane: Planes, table: npt.NDArray[np.int64]) -> None:
    """Replace each value of a plane."""
    replaced = plane.tobytes().translate(np.clip(table, 0, 255).astype(np.uint8).tobytes())
    plane[:] = np.frombuffer(replaced, np.uint8).reshape(plane.shape)


def _grey(planes: Planes) -> Planes:
    """Return Pillow's luma, [H, W]: sums of whole numbers below 2^24, so that float32 has them exactly."""
    total, term = (scratch(name, planes.shape[1:], np.float32) for name in ("grey", "term"))
    total[:] = 0x8000
    for plane, weight in zip(planes, (19595, 38470, 7471), strict=True):
        total += np.multiply(plane, np.float32(weight), out=term, dtype=np.float32)
    total *= np.float32(1 / 0x10000)
    return total.astype(np.uint8)


def _smooth(planes: Planes) -> Planes:
    """Return the image with each inner pixel a mean of nine, its own weight five times that of others."""
    smooth = planes.copy()
    height, width = planes.shape[1:]
    rows = scratch("rows", (height, max(0, width - 2)), np.uint16)
    for plane, inner in zip(planes, smooth[:, 1:-1, 1:-1], strict=True):
        np.add(plane[:, :-2], plane[:, 1:-1], out=rows, dtype=np.uint16)
        rows += plane[:, 2:]
        total = rows[:-2] + rows[1:-1]
        total += rows[2:]
        total += np.multiply(plane[1:-1, 1:-1], 4, dtype=np.uint16)
        # To the nearest; half-way never occurs, 13 being odd.
        total += 6
        total //= 13
        inner[:] = total
    return smooth


def _blended(start: Planes, planes: Planes, factor: float) -> Planes:
    """Go from one image to another, 1 being there, and beyond; truncated and clipped as Pillow does it.

    Args:
        start: uint8, [3, H, W], [H, W] or [1, 1].
        planes: uint8 [3, H, W], which is written to.
        factor: Used as float32.
    """
    if factor == 1:
        return planes
    share = np.float32(factor)
    floats = scratch("blend", planes.shape[1:], np.float32)
    steps = scratch("steps", planes.shape[1:], np.int16)
    for number, plane in enumerate(planes):
        origin = start[number] if start.ndim == 3 else start
        np.subtract(plane, origin, out=steps, dtype=np.int16)
        np.multiply(steps, share, out=floats, dtype=np.float32)
        floats += origin
        store(floats, plane, clip=not 0 <= factor <= 1)
    return planes
