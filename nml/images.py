"""Encoded images of strangers: which formats are read at all, and what is told of one that is not.

Names lie (ImageNet holds PNGs called .JPEG, and an EPS called 0.png would start Ghostscript), so the
format is always told by the first bytes, and only the formats below are ever handed to a decoder.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

# What webdataset readers hold too. Formats such as EPS or PDF would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# How files of these formats are called, without the dot; the likeliest first.
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
# Above the largest image of ImageNet (61 million pixels), far below what exhausts memory.
MAX_PIXELS = 100_000_000
# A progressive JPEG comes in some ten scans, each of which visits every pixel; one of a few kilobytes may
# have thousands.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 2_000_000_000

_ROWS = 256

_SCAN = re.compile(b"\xff\xda")
_BEGINNING = re.compile(
    rb"(?P<jpg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF....WEBP)|(?P<gif>GIF8[79]a)"
    rb"|(?P<bmp>BM)|(?P<tiff>II\*\0|MM\0\*)|(?P<ppm>P[1-6]\s)",
    re.DOTALL,
)


class BadImage(Exception):
    """An image that cannot or must not be decoded; the message says why."""


def open_image(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    """Return an image whose header is read and whose pixels are not yet decoded.

    Args:
        data: An encoded image.
        max_pixels: Refuse larger ones; None for no limit.

    Raises:
        BadImage: If it is damaged, of a format that is not read, or too large.
    """
    with bad_image():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if max_pixels is not None:
        check_pixels(image.width, image.height, max_pixels)
    if image.format == "JPEG":
        check_scans(data, image.width * image.height)
    return image


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`BadImage` if an image has too many pixels."""
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels, the limit is {max_pixels:,} in all")


def check_scans(data: bytes, pixels: int) -> None:
    """Raise :class:`BadImage` if a JPEG of so many pixels comes in too many scans."""
    scans = len(_SCAN.findall(data))
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        raise BadImage(
            f"{scans:,} scans of {pixels:,} pixels, the limit is {MAX_SCANS} and {MAX_SCANNED_PIXELS:,}"
        )


@contextmanager
def bad_image() -> Iterator[None]:
    """Tell every failure on foreign bytes as a bad image: decoders raise nearly any type on damage."""
    try:
        yield
    except (MemoryError, ImportError):
        # The machine's fault, not the image's: skipping would hide it.
        raise
    except UnidentifiedImageError as error:
        # Pillow names the object in memory, which tells nobody anything.
        raise BadImage(f"no image of {', '.join(FORMATS)}, or damaged") from error
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """Decode an image to RGB of 8 bits: the one rule for every form that images come in.

    - 16 bits a sample become 8 as the upper 8 (Pillow would make everything above 255 white).
    - Floats are taken for 0 to 1 where none is above 1, which Pillow would make black, else for 0 to 255.
    - Grey, palettes and CMYK are converted as Pillow does it, without colour profiles.
    - Transparency is left out: what counts is the colour that is stored.
    - The rotation that EXIF tells of is not applied; of an animation the first frame counts.

    Raises:
        BadImage: If it is damaged.
    """
    with warnings.catch_warnings(), bad_image():
        # Broken EXIF and palettes with bytes for transparency are common and harmless.
        warnings.simplefilter("ignore")
        image.load()
        return image if image.mode == "RGB" else eight_bits(image).convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a sample; one of 16 bits becomes grey, others stay as they are.

    Whole numbers of 32 bits are taken for such of 16, which PGM files are opened as. Floats become grey, too.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        return _of_floats(values)
    # In bands: of one that takes all memory that an image may take there must not be two.
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        grey[top : top + _ROWS] = np.clip(values[top : top + _ROWS], 0, 0xFFFF) >> 8
    return Image.fromarray(grey)


def _of_floats(values: npt.NDArray[np.float32]) -> Image.Image:
    # What is no number is black, and larger than all is white.
    scale = 255 if np.max(values, initial=0, where=np.isfinite(values)) <= 1 else 1
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        band = np.nan_to_num(values[top : top + _ROWS] * np.float32(scale), nan=0)
        grey[top : top + _ROWS] = np.clip(band + (scale > 1) / 2, 0, 255)
    return Image.fromarray(grey)


def image_extension(head: bytes | memoryview) -> str | None:
    """Return ``jpg``, ``png``, ``webp``, ``gif``, ``bmp``, ``tiff`` or ``ppm``; None for anything else.

    Args:
        head: The image's first 16 bytes, or more.
    """
    match = _BEGINNING.match(head[:16])
    return match.lastgroup if match else None
