"""Planar YUV 4:2:0: a shrunk image as three planes of bytes, which nobody has to decode.

Luma has every pixel, the two chroma planes a quarter of them each, so a pixel takes one and a half bytes.
Values are those of JPEG (full range, ITU-R BT.601), so that nothing is lost but what halving chroma loses.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from shards.decode import ImageSize, Pixels, decode_pixels

# Of 64: what Cr adds to red, Cb and Cr take from green, and Cb adds to blue. Every sum fits 16 bits.
_SCALE = 6
_RED, _GREEN, _BLUE = 90, (22, 46), 113
_HALF = 1 << (_SCALE - 1)

# Of a batch of packed images, where one of images has four.
PACKED_DIMENSIONS = 2


class Planes(NamedTuple):
    """One image.

    Attributes:
        luma: uint8 [H, W].
        chroma: Cb and Cr, uint8 [2, ceil(H / 2), ceil(W / 2)].
        full: The size of the image that it was made from, in pixels.
    """

    luma: Pixels
    chroma: Pixels
    full: ImageSize

    def to_rgb(self) -> Image.Image:
        """Return the image in RGB, chroma doubled by bilinear interpolation."""
        height, width = self.luma.shape
        wide = (2 * self.chroma.shape[2], 2 * self.chroma.shape[1])
        chroma = [
            Image.fromarray(plane).resize(wide, Image.Resampling.BILINEAR).crop((0, 0, width, height))
            for plane in self.chroma
        ]
        planes = np.stack([self.luma, *map(np.asarray, chroma)])
        return Image.fromarray(to_rgb(torch.from_numpy(planes)).permute(1, 2, 0).numpy())


def planes_of(data: bytes, side: int) -> tuple[bytes, ImageSize, ImageSize]:
    """Return an encoded image as planes of at most this short side, its size then, and its full size.

    Raises:
        BadImage: If it cannot be decoded.
    """
    pixels = decode_pixels(data)
    full = ImageSize(pixels.shape[1], pixels.shape[0])
    size = full
    if min(full) > side:
        scale = side / min(full)
        size = ImageSize(max(side, round(full.width * scale)), max(side, round(full.height * scale)))
    image = Image.fromarray(pixels)
    if size != full:
        image = image.resize(size, Image.Resampling.BICUBIC)
    luma, *chroma = image.convert("YCbCr").split()
    content = io.BytesIO()
    for plane in (luma, *(each.reduce(2) for each in chroma)):
        content.write(plane.tobytes())
    return content.getvalue(), size, full


def planes_size(width: int, height: int) -> int:
    """Return the bytes that an image takes."""
    return width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)


def planes_from(content: bytes | bytearray, size: ImageSize, full: ImageSize) -> Planes:
    """Return planes from their bytes, without copying them."""
    pixels = np.frombuffer(content, np.uint8)
    luma, chroma = pixels[: size.width * size.height], pixels[size.width * size.height :]
    half = ((size.height + 1) // 2, (size.width + 1) // 2)
    return Planes(luma.reshape(size.height, size.width), chroma.reshape(2, *half), full)


def to_rgb(planes: torch.Tensor) -> torch.Tensor:
    """Make red, green and blue of luma, Cb and Cr, uint8 [3, H, W], in place; at most 2 of 255 off."""
    # A plane at a time: what is larger is mapped anew by the allocator, which costs more than the sums.
    luma = planes[0].to(torch.int16).bitwise_left_shift_(_SCALE).add_(_HALF)
    blue, red = planes[1].to(torch.int16).sub_(128), planes[2].to(torch.int16).sub_(128)
    channels = (
        torch.add(luma, red, alpha=_RED),
        torch.sub(luma, blue, alpha=_GREEN[0]).sub_(red, alpha=_GREEN[1]),
        luma.add_(blue, alpha=_BLUE),
    )
    for place, channel in enumerate(channels):
        planes[place] = channel.bitwise_right_shift_(_SCALE).clamp_(0, 255)
    return planes


def packed(luma: torch.Tensor, chroma: torch.Tensor) -> torch.Tensor:
    """Return luma, uint8 [S, S], and chroma, uint8 [2, S / 2, S / 2], as one tensor of bytes, [1.5 S * S]."""
    return torch.cat((luma.reshape(-1), chroma.reshape(-1)))


def unpacked(images: torch.Tensor) -> torch.Tensor:
    """Return RGB, uint8 [N, 3, S, S], of a batch of packed images, uint8 [N, 1.5 S * S], on their device.

    Chroma is doubled by bilinear interpolation, and every value rounded once.
    """
    side = math.isqrt(images.shape[1] * 2 // 3)
    luma = images[:, : side * side].view(-1, 1, side, side).float()
    chroma = images[:, side * side :].view(-1, 2, side // 2, side // 2).float().sub_(128)
    blue, red = functional.interpolate(chroma, scale_factor=2, mode="bilinear").split(1, dim=1)
    channels = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return torch.cat(channels, dim=1).round_().clamp_(0, 255).to(torch.uint8)
