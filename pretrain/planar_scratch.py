"""Arithmetic on planes, [3, H, W] of uint8: memory that is used again, and how C makes bytes of floats."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}


_scratches = _Scratch()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return memory of this thread's that is used again: fresh pages cost more than the arithmetic."""
    found = _scratches.arrays.get(name)
    if found is None or found.shape != shape or found.dtype != dtype:
        found = _scratches.arrays[name] = np.empty(shape, dtype)
    return found


def store(floats: npt.NDArray[np.floating[Any]], plane: Planes, *, clip: bool) -> None:
    """Truncate towards zero, as C casts."""
    if not clip:
        plane[:] = floats
        return
    whole = scratch("whole", plane.shape, np.int16)
    whole[:] = floats
    np.clip(whole, 0, 255, out=whole)
    plane[:] = whole
