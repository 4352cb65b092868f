"""Shifts that turn test samples of the user's own data into out-of-domain variants.

Each is a pure function of (sample, key): the same on every run and machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from probes.samples import Modality

VERSION = 1


def _stream(name: str, key: str) -> np.random.Generator:
    seed = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little")))


def inverted(image: Image.Image, key: str) -> Image.Image:  # noqa: ARG001 - one signature for all shifts
    """Swap light and dark."""
    return ImageOps.invert(image.convert("RGB"))


def rotated(image: Image.Image, key: str) -> Image.Image:
    """Turn by 30 degrees, left or right by the key."""
    angle = 30 if _stream("rotated", key).random() < 0.5 else -30
    return image.convert("RGB").rotate(angle, Image.Resampling.BILINEAR)


def blurred(image: Image.Image, key: str) -> Image.Image:  # noqa: ARG001
    """Blur with a radius of 1/24 of the shorter side."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(min(image.size) / 24))


def noisy(image: Image.Image, key: str) -> Image.Image:
    """Add Gaussian noise of a standard deviation of 0.15 of the range."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    noise = _stream("noisy", key).normal(0, 0.15 * 255, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def typos(text: str, key: str) -> str:
    """Swap two neighbouring letters in about a third of the longer words."""
    stream = _stream("typos", key)
    words = []
    for word in text.split(" "):
        if len(word) > 3 and stream.random() < 1 / 3:
            place = int(stream.integers(1, len(word) - 2))
            word = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        words.append(word)
    return " ".join(words)


def dropped(text: str, key: str) -> str:
    """Leave out about a fifth of the words, never all."""
    stream = _stream("dropped", key)
    words = text.split(" ")
    kept = [word for word in words if stream.random() >= 0.2]
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
