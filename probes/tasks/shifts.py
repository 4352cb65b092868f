"""Shifts that turn test samples of the user's own data into out-of-domain variants.

Each is a pure function of (sample, key): the same on every run and machine, whatever else is in the set.
Random numbers are bits of Philox, keyed by the shift and the sample. Bits stay as they are between versions
of NumPy; the distributions it draws from them may change, so they are made here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from probes.samples import Modality

# Raise it with any change of a shift's outcome: features of the old one are then computed again.
VERSION = 2


def _uniform(name: str, key: str, count: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1), float64, that follow from a shift's name and a sample's key."""
    seed = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(seed, "little")).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def inverted(image: Image.Image, key: str) -> Image.Image:  # noqa: ARG001 - one signature for all shifts
    """Swap light and dark."""
    return ImageOps.invert(image.convert("RGB"))


def rotated(image: Image.Image, key: str) -> Image.Image:
    """Turn by 30 degrees, left or right by the key."""
    angle = 30 if _uniform("rotated", key, 1)[0] < 0.5 else -30
    return image.convert("RGB").rotate(angle, Image.Resampling.BILINEAR)


def blurred(image: Image.Image, key: str) -> Image.Image:  # noqa: ARG001
    """Blur with a Gaussian whose deviation is 1/24 of the shorter side."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(min(image.size) / 24))


def noisy(image: Image.Image, key: str) -> Image.Image:
    """Add Gaussian noise of a standard deviation of 0.15 of the range."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    first, second = _uniform("noisy", key, 2 * pixels.size).reshape(2, *pixels.shape)
    # Box and Muller; 1 - u is never 0.
    normal = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    return Image.fromarray(np.clip(np.rint(pixels + 0.15 * 255 * normal), 0, 255).astype(np.uint8))


def typos(text: str, key: str) -> str:
    """Swap two neighbouring letters in about a third of the longer words."""
    words = text.split(" ")
    chances, places = _uniform("typos", key, 2 * len(words)).reshape(2, -1)
    for number, word in enumerate(words):
        if len(word) > 3 and chances[number] < 1 / 3:
            # The first letter and the last stay where they are, as far as the length allows.
            place = 1 + int(places[number] * (len(word) - 3))
            words[number] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)


def dropped(text: str, key: str) -> str:
    """Leave out about a fifth of the words, never all."""
    words = text.split(" ")
    chances = _uniform("dropped", key, len(words))
    kept = [word for word, chance in zip(words, chances, strict=True) if chance >= 0.2]
    return " ".join(kept or words)


def _on_each(shift: Callable[[str, str], str]) -> Callable[[Any, str], Any]:
    def apply(content: Any, key: str) -> Any:
        return (
            shift(content, key) if isinstance(content, str) else tuple(shift(part, key) for part in content)
        )

    return apply


SHIFTS: Mapping[Modality, Mapping[str, Callable[[Any, str], Any]]] = {
    "image": {"inverted": inverted, "rotated": rotated, "blurred": blurred, "noisy": noisy},
    "text": {"typos": _on_each(typos), "dropped": _on_each(dropped)},
}
