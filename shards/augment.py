"""The standard training augmentation, fast: it decodes no larger than its crop needs.

:class:`RandomResizedCrop` draws its box from the image's header before decoding. Where the crop
will be shrunk by four or more, libjpeg-turbo decodes at 1/2, 1/4 or 1/8 of the size; the box scales
with it. Otherwise the box is cut out and resized by torch's uint8 kernel, four times as fast as
Pillow's and equal to within rounding. Stock transforms of timm or torchvision work as well, on the
fully decoded image.

Parameters as in torchvision: C. Szegedy et al., Going Deeper with Convolutions (CVPR 2015).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from nml.errors import UserError
from shards.decode import MAX_PIXELS, Box, ImageSize, Pixels, decode_box, decode_pixels, image_size
from shards.yuv import Planes, packed, to_rgb

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ATTEMPTS = 10
# A crop is decoded at no less than this many times the result's side, as Pillow's reducing_gap: the
# last step is then always an antialiased shrink, and textures keep their look.
_REDUCING_GAP = 2.0


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Crop a random box, resize it to a square and flip it at random; from bytes to uint8 [3, S, S].

    Attributes:
        size: S, pixels of the result's side.
        scale: Smallest and largest share of the image's area that the box covers.
        ratio: Smallest and largest width over height of the box.
        flip: Chance of a left-right flip.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.
        scaled_decode: Whether a JPEG may be decoded at a fraction of its size for a large crop.
        packed: Whether images of a cache come as their planes, uint8 [1.5 S * S], half of the bytes of
            RGB, which :func:`shards.yuv.unpacked` makes of a whole batch on the training device.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scaled_decode: bool = True
    packed: bool = False

    def __post_init__(self) -> None:
        if self.packed and self.size % 2:
            raise UserError(f"crop of {self.size} pixels: packed planes have an even side")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Augment a decoded RGB image."""
        return self._flipped(self._resized(np.array(image), self.draw(ImageSize(*image.size))))

    def from_bytes(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """Augment an encoded image, decoding no more of it than the box needs.

        Raises:
            BadImage: If it is too large, damaged or of an unknown format.
        """
        full = image_size(data)
        box = self.draw(full)
        gap = _REDUCING_GAP * self.size
        if self.scaled_decode and min(box.width, box.height) >= 2 * gap:
            shrink = gap / min(box.width, box.height)
            at_least = ImageSize(math.ceil(full.width * shrink), math.ceil(full.height * shrink))
            pixels = decode_pixels(data, max_pixels=max_pixels, at_least=at_least, size=full)
            if pixels.shape[1] != full.width:
                return self._flipped(self._resized_from_smaller(pixels, box, full))
            return self._flipped(self._resized(pixels, box))
        pixels, left, top = decode_box(data, box, max_pixels=max_pixels, size=full)
        return self._flipped(self._resized(pixels, box._replace(left=box.left - left, top=box.top - top)))

    def from_planes(self, planes: Planes) -> torch.Tensor:
        """Augment an image of a cache, drawing the same box as of the whole one.

        The box is laid on even pixels of what is cached, where chroma has its pixels too.
        """
        height, width = planes.luma.shape
        box = self.draw(planes.full)
        left, right = _even(box.left, box.left + box.width, width / planes.full.width, width)
        top, bottom = _even(box.top, box.top + box.height, height / planes.full.height, height)
        luma = np.ascontiguousarray(planes.luma[top:bottom, left:right])
        chroma = np.ascontiguousarray(
            planes.chroma[:, top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2]
        )
        if self.packed:
            half = self.size // 2
            flip = random.random() < self.flip  # noqa: S311 - augmentation, not cryptography
            parts = (self._scaled(luma[None], self.size), self._scaled(chroma, half))
            return packed(*(part.flip(2) if flip else part for part in parts))
        resized = torch.empty(3, self.size, self.size, dtype=torch.uint8)
        resized[:1] = self._scaled(luma[None], self.size)
        resized[1:] = self._scaled(chroma, self.size)
        return self._flipped(to_rgb(resized))

    def _scaled(self, planes: Pixels, side: int) -> torch.Tensor:
        """Resize planes, uint8 [C, H, W], to [C, S, S]."""
        resized = functional.interpolate(
            torch.from_numpy(planes)[None], (side, side), mode=self.interpolation, antialias=True
        )
        return resized[0]

    def draw(self, full: ImageSize) -> Box:
        """Draw a box from Python's random state, as torchvision draws it."""
        area = full.width * full.height
        low, high = (math.log(value) for value in self.ratio)
        for _ in range(_ATTEMPTS):
            target = area * random.uniform(*self.scale)  # noqa: S311 - augmentation, not cryptography
            aspect = math.exp(random.uniform(low, high))  # noqa: S311
            width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < width <= full.width and 0 < height <= full.height:
                left = random.randint(0, full.width - width)  # noqa: S311
                return Box(left, random.randint(0, full.height - height), width, height)  # noqa: S311
        return self._central(full)

    def _central(self, full: ImageSize) -> Box:
        """Return the largest central box of an allowed ratio."""
        width, height = full
        if width < height * self.ratio[0]:
            height = round(width / self.ratio[0])
        elif width > height * self.ratio[1]:
            width = round(height * self.ratio[1])
        return Box((full.width - width) // 2, (full.height - height) // 2, width, height)

    def _resized(self, pixels: Pixels, box: Box) -> torch.Tensor:
        """Cut out a box and resize it, uint8 [3, S, S]."""
        cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        # torch would gather a cut of rows pixel by pixel.
        planes = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None]
        side = (self.size, self.size)
        return functional.interpolate(planes, side, mode=self.interpolation, antialias=True)[0]

    def _resized_from_smaller(self, pixels: Pixels, box: Box, full: ImageSize) -> torch.Tensor:
        """Resize the box's share of a scaled-down image, whose edges fall between pixels."""
        height, width = pixels.shape[:2]
        x, y = width / full.width, height / full.height
        # Rounding of a scaled decode may put the far corner a fraction of a pixel outside.
        right, bottom = min((box.left + box.width) * x, width), min((box.top + box.height) * y, height)
        corners = (box.left * x, box.top * y, right, bottom)
        small = Image.fromarray(pixels).resize(
            (self.size, self.size), _RESAMPLING[self.interpolation], box=corners
        )
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()

    def _flipped(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(2) if random.random() < self.flip else image  # noqa: S311


def _even(first: int, end: int, scale: float, length: int) -> tuple[int, int]:
    """Return a range of the full image in a smaller one, from an even pixel to one, or to its edge."""
    start = min(2 * round(first * scale / 2), 2 * ((length - 1) // 2))
    return start, min(max(2 * round(end * scale / 2), start + 2), length)
