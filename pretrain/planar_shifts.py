"""timm's shears and translations, on planes: each writes into those that it is given and returns them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pretrain.planar_scratch import Planes, Reals, scratch, store


def shear_x(planes: Planes, factor: float, **options: Any) -> Planes:
    """Shift rows, each by its place."""
    return _shifted(
        planes, 2, _centres(planes.shape[2])[None], factor * _centres(planes.shape[1])[:, None], options
    )


def shear_y(planes: Planes, factor: float, **options: Any) -> Planes:
    """Shift columns, each by its place."""
    return _shifted(
        planes, 1, _centres(planes.shape[1])[:, None], factor * _centres(planes.shape[2])[None], options
    )


def translate_x(planes: Planes, pixels: float, **options: Any) -> Planes:
    """Shift all rows."""
    return _shifted(planes, 2, _centres(planes.shape[2])[None], np.array([[pixels]]), options)


def translate_y(planes: Planes, pixels: float, **options: Any) -> Planes:
    """Shift all columns."""
    return _shifted(planes, 1, _centres(planes.shape[1])[:, None], np.array([[pixels]]), options)


def translate_x_rel(planes: Planes, share: float, **options: Any) -> Planes:
    """Shift all rows by a share of the width."""
    return translate_x(planes, share * planes.shape[2], **options)


def translate_y_rel(planes: Planes, share: float, **options: Any) -> Planes:
    """Shift all columns by a share of the height."""
    return translate_y(planes, share * planes.shape[1], **options)


def _centres(length: int) -> Reals:
    return np.arange(length, dtype=np.float64) + 0.5


def _shifted(planes: Planes, axis: int, centres: Reals, shifts: Reals, options: dict[str, Any]) -> Planes:
    """Resample along one axis, with edges that go on, and a colour for what lies beyond them.

    Args:
        planes: uint8 [3, H, W].
        axis: 1 for columns, 2 for rows.
        centres: Of pixels along it, [H, 1] or [1, W].
        shifts: Of where they come from, one for each line or one for all, [1, W] or [H, 1] or [1, 1].
        options: timm's: ``resample``, one or more of Pillow's filters to choose from, and ``fillcolor``.
    """
    filters = options["resample"]
    chosen = random.choice(filters) if isinstance(filters, list | tuple) else filters  # noqa: S311
    cubic = chosen == Image.Resampling.BICUBIC
    shape = np.broadcast_shapes(centres.shape, shifts.shape)
    places, whole, steps = (scratch(name, shape, np.float64) for name in ("places", "whole places", "steps"))
    np.add(centres, shifts, out=places)
    outside = (places < 0) | (places >= planes.shape[axis])
    places -= 0.5
    np.floor(places, out=whole)
    places -= whole
    np.subtract(whole, centres - 0.5, out=steps)
    first = steps.take([0], axis - 1)
    if (steps == first).all():
        taps = _taps(planes, first.ravel().astype(np.int64), axis, 4 if cubic else 2)
    else:
        # Rounding parts the pixels of a line, some of which are shifted by one more than others.
        taps = _taps_apart(planes, whole.astype(np.int64), axis, 4 if cubic else 2)
    for number, plane in enumerate(planes):
        (_cubic if cubic else _linear)([tap[number] for tap in taps], places, plane)
    for plane, value in zip(planes, options["fillcolor"], strict=True):
        np.copyto(plane, value, where=outside)
    return planes


def _taps(planes: Planes, offsets: npt.NDArray[np.int64], axis: int, count: int) -> list[Planes]:
    """Return, of each pixel, those that it is interpolated from, ``count`` times [3, H, W].

    Args:
        planes: uint8 [3, H, W].
        offsets: How many pixels a line is shifted by: one for each, or one for all.
        axis: Along which.
        count: 2, or 4, the first of which lies before the place.
    """
    # Lines lie along the last axis here, whichever it was; each goes on by two pixels at its ends.
    lines = planes if axis == 2 else planes.swapaxes(1, 2)
    across, length = lines.shape[1:]
    wide = _line_scratch("wide", across, length + 4, axis)
    wide[:, :, 2:-2] = lines
    wide[:, :, :2] = lines[:, :, :1]
    wide[:, :, -2:] = lines[:, :, -1:]
    moved = _line_scratch("moved", across, length + count - 1, axis)
    starts = [0, *(np.flatnonzero(np.diff(offsets)) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], across], strict=True):
        source = int(offsets[start]) + 3 - count // 2
        # What would come from farther away is left as it was, and filled in later.
        low, high = max(0, -source), min(length + count - 1, length + 4 - source)
        if low < high:
            moved[:, start:end, low:high] = wide[:, start:end, source + low : source + high]
    views = [moved[:, :, tap : tap + length] for tap in range(count)]
    return views if axis == 2 else [view.swapaxes(1, 2) for view in views]


def _taps_apart(planes: Planes, whole: npt.NDArray[np.int64], axis: int, count: int) -> list[Planes]:
    """Return the same pixel by pixel; ``whole`` is where each pixel comes from, [H, W], or 1 for either."""
    wanted = (whole + tap + 1 - count // 2 for tap in range(count))
    places = (np.clip(place, 0, planes.shape[axis] - 1) for place in wanted)
    return [np.take_along_axis(planes, place[None], axis) for place in places]


def _line_scratch(name: str, across: int, length: int, axis: int) -> Planes:
    if axis == 2:
        return scratch(name, (3, across, length), np.uint8)
    return scratch(name, (3, length, across), np.uint8).swapaxes(1, 2)


def _linear(taps: list[Planes], part: Reals, plane: Planes) -> None:
    """Pillow's, near + (far - near) d."""
    near, far = taps
    steps = scratch("steps", plane.shape, np.int16)
    floats = scratch("floats", plane.shape, np.float64)
    np.subtract(far, near, out=steps, dtype=np.int16)
    np.multiply(steps, part, out=floats)
    floats += near
    store(floats, plane, clip=False)


def _cubic(taps: list[Planes], part: Reals, plane: Planes) -> None:
    """Pillow's cubic, p1 + d (p2 + d (p3 + d p4)), whose coefficients are whole numbers."""
    first, second, third, fourth = taps
    rise, fall, linear = (scratch(name, plane.shape, np.int16) for name in ("rise", "fall", "steps"))
    floats = scratch("floats", plane.shape, np.float64)
    np.subtract(first, second, out=rise, dtype=np.int16)
    np.subtract(third, fourth, out=fall, dtype=np.int16)
    fall += rise
    rise += fall
    np.subtract(third, first, out=linear, dtype=np.int16)
    np.multiply(fall, part, out=floats)
    np.subtract(rise, floats, out=floats)
    floats *= part
    floats += linear
    floats *= part
    floats += second
    store(floats, plane, clip=True)
