"""Augmented views of images, each a pure function of (sample key, view)."""

from __future__ import annotations

import hashlib
import math
import random

from PIL import Image

from nml.errors import UserError
from probes.samples import Content

# The bounds of the usual random resized crop.
AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)


def augment(content: Content, key: str, view: int) -> Image.Image:
    """Return view number ``view`` of an image: a random crop, resized back, flipped half of the time.

    Raises:
        UserError: If the sample is text.
    """
    if not isinstance(content, Image.Image):
        raise UserError("--views: the task holds text", possible="0 for tasks of text")
    seed = hashlib.blake2b(f"{view}\0{key}".encode(), digest_size=8).digest()
    stream = random.Random(int.from_bytes(seed, "little"))  # noqa: S311 - an augmentation, no secret
    width, height = content.size
    area = stream.uniform(*AREA) * width * height
    aspect = math.exp(stream.uniform(*map(math.log, ASPECT)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = stream.randint(0, width - crop_width), stream.randint(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    cropped = content.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if stream.random() < 0.5 else cropped
