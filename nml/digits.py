"""The bundled data set: scikit-learn's handwritten digits, 1,797 real scans of 8 x 8 pixels.

It is what every command falls back to when no data is named, because it needs no network. The
scans are enlarged to 32 x 32 with integer bilinear interpolation, so the pixels are the same on
every machine, and split once and for all, class by class, by a hash of the sample's key.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), CC BY 4.0.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
CLASSES = tuple(str(digit) for digit in range(10))
SIZE = 32
NOTICE = "no data named: the bundled digits set stands in (1,797 real scans, 10 classes)"

_SHARES = {"test": 0.2, "validation": 0.1}


class Digits(NamedTuple):
    """One split of the bundled set, in a fixed order.

    Attributes:
        keys: N unique names, ``digit-0000`` for the first scan of the original file.
        images: Grey levels, uint8 [N, 32, 32], 0 is paper and 255 is ink.
        labels: Classes 0 to 9, int64 [N].
    """

    keys: list[str]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@functools.cache
def load(split: Split) -> Digits:
    """Return the ``train`` (1,259), ``validation`` (179) or ``test`` (359) split.

    The arrays are shared between callers and therefore read-only.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = _enlarge(scans.images.astype(np.int64))
    labels = scans.target.astype(np.int64)
    keys = [f"digit-{number:04d}" for number in range(len(labels))]
    rows = np.flatnonzero(np.array(_assign(keys, labels)) == split)
    images, labels = images[rows], labels[rows]
    images.setflags(write=False)
    labels.setflags(write=False)
    return Digits([keys[row] for row in rows], images, labels)


def _assign(keys: list[str], labels: npt.NDArray[np.int64]) -> list[Split]:
    """Give each key its split: within a class, the smallest hashes are test, the next validation."""
    split: list[Split] = ["train"] * len(keys)
    for label in np.unique(labels):
        members = sorted(
            np.flatnonzero(labels == label), key=lambda row: hashlib.blake2b(keys[row].encode()).digest()
        )
        tests = round(_SHARES["test"] * len(members))
        validations = round(_SHARES["validation"] * len(members))
        for row in members[:tests]:
            split[row] = "test"
        for row in members[tests : tests + validations]:
            split[row] = "validation"
    return split


def _enlarge(scans: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Enlarge grey levels 0..16, [N, 8, 8], to uint8 [N, 32, 32] by bilinear interpolation at pixel centres.

    All in integers: output pixel i sits at (2 i + 1) / 8 - 1 / 2 input pixels, an odd number of
    eighths, so the weights are eighths and the result is exact before one rounding division.
    """
    position = 2 * np.arange(SIZE) + 1 - 4
    low, weight = position // 8, position % 8
    first, second = np.clip(low, 0, 7), np.clip(low + 1, 0, 7)
    rows = scans[:, first] * (8 - weight)[:, None] + scans[:, second] * weight[:, None]
    both = rows[:, :, first] * (8 - weight) + rows[:, :, second] * weight
    # 16 levels times 8 times 8 weights: the full scale is 1024.
    return ((both * 255 + 512) // 1024).astype(np.uint8)
