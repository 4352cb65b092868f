"""Smaller images: what is longer than it need be on its short side is shrunk, and becomes a JPEG.

Everything is Pillow's (decoding, an antialiased bicubic shrink, libjpeg-turbo's encoder), whether or not
faster decoders are installed: one version of it gives one result, which set.json names.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import PIL
from PIL import Image, features

from nml.errors import UserError
from nml.images import MAX_PIXELS, eight_bit_rgb, open_image

QUALITY = 90
SUBSAMPLING = "4:2:0"


@dataclass(frozen=True)
class Resize:
    """How images are made smaller.

    Attributes:
        side: The short side that an image has at most, in pixels.
        quality: Of the JPEG, 1 to 95 as libjpeg counts.
    """

    side: int
    quality: int = QUALITY

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"--resize {self.side}: no size", possible="1 and above, such as 256")
        if not 1 <= self.quality <= 95:
            raise UserError(f"--quality {self.quality}: no quality of a JPEG", possible="1 to 95")

    def as_json(self) -> dict[str, int | str]:
        """Return what set.json says of it."""
        return {
            "short_side": self.side,
            "quality": self.quality,
            "subsampling": SUBSAMPLING,
            "filter": "bicubic",
            "encoder": encoder_version(),
        }

    def smaller(self, data: bytes) -> bytes | None:
        """Return an image as a JPEG of this short side; None if it has no longer one.

        What EXIF and colour profiles say is not kept.

        Raises:
            BadImage: If it cannot be decoded.
        """
        image = open_image(data, max_pixels=MAX_PIXELS)
        if min(image.size) <= self.side:
            return None
        width, height = image.size
        scale = self.side / min(width, height)
        size = (max(self.side, round(width * scale)), max(self.side, round(height * scale)))
        small = eight_bit_rgb(image).resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=self.quality, subsampling=SUBSAMPLING)
        return file.getvalue()


def encoder_version() -> str:
    """Return what decides the bytes of a JPEG: Pillow and the library it was built with."""
    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__}, {library}"
