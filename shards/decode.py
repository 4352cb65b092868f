"""Decode images fast and safely: a pixel limit first, then libjpeg-turbo, then Pillow for the rest.

JPEGs go through simplejpeg where it is installed, straight into an RGB array, and can be decoded
at 1/2, 1/4 or 1/8 of their size, which saves most of the work when a crop will be shrunk anyway,
or without the rows below a crop, and of JPEGs with restart markers without most of what is beside it
(:mod:`shards.partial_jpeg`), which saves their share of the work and changes nothing of what is left.
Both decoders are libjpeg-turbo with the same transform and upsampling, so at full size the pixels
are equal; tests hold the bound.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml.images import (
    MAX_PIXELS,
    BadImage,
    bad_image,
    check_pixels,
    check_scans,
    eight_bit_rgb,
    open_image,
)
from shards.partial_jpeg import CHROMA_CONTEXT, Box, Frame, cut_out, sequential_frame

__all__ = [
    "MAX_PIXELS",
    "BadImage",
    "Box",
    "ImageSize",
    "Part",
    "Pixels",
    "SeveralViews",
    "decode_box",
    "decode_pixels",
    "decode_rgb",
    "image_size",
]

Pixels = npt.NDArray[np.uint8]

FAST_JPEG = importlib.util.find_spec("simplejpeg") is not None
_JPEG = b"\xff\xd8\xff"
_END_OF_IMAGE = b"\xff\xd9"
# Pillow takes twice the size of what it is asked for at once.
_PIXELS_AT_ONCE = 16 << 20
# What simplejpeg raises for damaged data, and for a colour space it has no name for.
_DAMAGED_JPEG = (ValueError, KeyError)


class ImageSize(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Part(NamedTuple):
    """A rectangle of an image, which may be all of it.

    Attributes:
        pixels: RGB, uint8 [H, W, 3].
        left: Columns of the image before it.
        top: Rows of the image above it.
    """

    pixels: Pixels
    left: int
    top: int


class SeveralViews(bytes):
    """An encoded image of which several boxes will be asked for: it is decoded whole, and once.

    What any box gives is what it gives of the bytes alone, of damaged images too.
    """

    _whole: Pixels | None = None

    def keep(self, pixels: Pixels) -> None:
        """Remember the decoded image, uint8 [H, W, 3], which nobody may write to."""
        self._whole = pixels

    def whole(self) -> Pixels | None:
        """Return what was kept."""
        return self._whole


def image_size(data: bytes) -> ImageSize:
    """Return an image's size from its header.

    Raises:
        BadImage: If the header cannot be read.
    """
    if FAST_JPEG and data.startswith(_JPEG):
        import simplejpeg

        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except _DAMAGED_JPEG:
            pass
        else:
            return ImageSize(width, height)
    return ImageSize(*_open(data).size)


def decode_rgb(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: ImageSize | None = None,
) -> Image.Image:
    """Decode an image to RGB; arguments and errors as in :func:`decode_pixels`."""
    return Image.fromarray(decode_pixels(data, max_pixels=max_pixels, at_least=at_least))


def decode_pixels(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: ImageSize | None = None,
    size: ImageSize | None = None,
) -> Pixels:
    """Decode an image to RGB, uint8 [H, W, 3].

    Args:
        data: An encoded image.
        max_pixels: Refuse larger ones before any pixel is decoded.
        at_least: A JPEG may come back scaled down by 2, 4 or 8, but not below this size.
        size: The image's, from :func:`image_size`; read from the header where not given.

    Raises:
        BadImage: If it is too large, damaged or of an unknown format.
    """
    return _decode(data, max_pixels, at_least, None, size or image_size(data)).pixels


def decode_box(data: bytes, box: Box, *, max_pixels: int = MAX_PIXELS, size: ImageSize | None = None) -> Part:
    """Decode as much of an image as a box needs, or more; the other arguments and errors as above."""
    return _decode(data, max_pixels, None, box, size or image_size(data))


def _decode(
    data: bytes, max_pixels: int, at_least: ImageSize | None, box: Box | None, size: ImageSize
) -> Part:
    check_pixels(*size, max_pixels)
    views = data if at_least is None and isinstance(data, SeveralViews) else None
    if views is not None and (kept := views.whole()) is not None:
        return Part(kept, 0, 0)
    fast = FAST_JPEG and data.startswith(_JPEG)
    part = _jpeg_part(data, at_least, box, size) if fast else None
    if part is None:
        part = Part(_pillow(data, size, at_least), 0, 0)
        # Of a damaged JPEG the rows of one box may decode, and those of another not.
        views = None if fast else views
    if views is not None and part.pixels.shape[:2] == (size.height, size.width):
        views.keep(part.pixels)
    return part


def _jpeg_part(data: bytes, at_least: ImageSize | None, box: Box | None, size: ImageSize) -> Part | None:
    """Decode a JPEG, or no more of it than a box needs; None for what Pillow must look at."""
    frame = sequential_frame(data)
    if frame is None:
        check_scans(data, size.width * size.height)
    elif box is not None:
        part = _jpeg_box(data, frame, box, size)
        if part is not None:
            return part
    pixels = _turbo(data, at_least)
    return None if pixels is None else Part(pixels, 0, 0)


def _turbo(data: bytes | bytearray, at_least: ImageSize | None) -> Pixels | None:
    """Decode with libjpeg-turbo; None for what Pillow must look at (CMYK, damage)."""
    import simplejpeg

    width, height = at_least or (0, 0)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=2.0 if at_least else 1.0
        )
    except _DAMAGED_JPEG:
        return None
    return pixels


def _jpeg_box(data: bytes, frame: Frame, box: Box, size: ImageSize) -> Part | None:
    """Decode no more of a JPEG than a box needs and its form allows; None where only the whole will do."""
    if isinstance(data, SeveralViews) and (pixels := _turbo(data, None)) is not None:
        return Part(pixels, 0, 0)
    part = cut_out(data, frame, *size, box)
    if part is not None:
        pixels = _turbo(part.data, None)
        return None if pixels is None else Part(pixels, part.left, part.top)
    pixels = _top_of_jpeg(data, frame, box.top + box.height, size.height)
    return None if pixels is None else Part(pixels, 0, 0)


def _top_of_jpeg(data: bytes, frame: Frame, rows: int, height: int) -> Pixels | None:
    """Decode the first rows of a JPEG, or a few more; None where only the whole will do.

    The blocks of a sequential JPEG come in raster order, so with a smaller height in its header the
    decoder stops early. What is left over is no damage then, which takes away the decoder's word on
    real damage; hence only data that runs to its end mark, as Pillow asks too.
    """
    import simplejpeg

    kept = rows + CHROMA_CONTEXT
    if kept >= height or not data.rstrip(b"\0").endswith(_END_OF_IMAGE):
        return None
    shortened = bytearray(data)
    shortened[frame.header + 5 : frame.header + 7] = kept.to_bytes(2, "big")
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(shortened, "RGB", strict=False)
    except _DAMAGED_JPEG:
        return None
    return pixels


def _pillow(data: bytes, size: ImageSize, at_least: ImageSize | None) -> Pixels:
    image = _open(data)
    if at_least and image.format == "JPEG":
        image.draft("RGB", (min(at_least.width, size.width), min(at_least.height, size.height)))
    rgb = eight_bit_rgb(image)
    # Of one that takes all memory that an image may take there must not be two.
    del image
    with warnings.catch_warnings(), bad_image():
        warnings.simplefilter("ignore")
        return _copied(rgb)


def _copied(image: Image.Image) -> Pixels:
    """Return the pixels of an RGB image; the array of the image itself is read-only, which no tensor is."""
    width, height = image.size
    rows = max(1, _PIXELS_AT_ONCE // width)
    if rows >= height:
        return np.array(image)
    image.load()
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        pixels[top : top + rows] = np.asarray(image.crop((0, top, width, min(height, top + rows))))
    return pixels


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_image(data)
