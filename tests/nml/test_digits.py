"""The bundled set is the same everywhere and its splits never mix."""

from __future__ import annotations

import hashlib

import numpy as np

from nml import digits


def test_the_splits_hold_every_scan_once() -> None:
    keys = [key for split in digits.SPLITS for key in digits.load(split).keys]
    assert len(keys) == len(set(keys)) == 1797


def test_every_class_has_its_share_of_every_split() -> None:
    for split, share in (("test", 0.2), ("validation", 0.1)):
        counts = np.bincount(digits.load(split).labels, minlength=10)
        whole = sum(np.bincount(digits.load(name).labels, minlength=10) for name in digits.SPLITS)
        assert np.all(np.abs(counts - share * whole) <= 0.5)


def test_the_pixels_are_frozen() -> None:
    # Results of other people's runs are comparable only while these bytes stay what they are.
    digest = hashlib.sha256()
    for split in digits.SPLITS:
        digest.update(digits.load(split).images.tobytes())
        digest.update(digits.load(split).labels.tobytes())
    assert digest.hexdigest() == "235af6e885dfa113595ef876ad4f56442754474b0cad426b26ffc4d5aedb04f7"


def test_the_enlargement_keeps_flat_areas_and_full_scale() -> None:
    images = digits.load("train").images
    assert images.shape[1:] == (32, 32)
    assert images.dtype == np.uint8
    assert images.min() == 0
    assert images.max() == 255
