"""Smaller images: what is longer than it need be on its short side is shrunk, and becomes a JPEG.

Everything is Pillow's (decoding, an antialiased bicubic shrink, libjpeg-turbo's encoder), whether or not
faster decoders are installed: one version of it gives one result, which set.json names.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import PIL
from PIL import Image, features

from nml.errors import UserError
from nml.images import MAX_PIXELS, BadImage, bad_image, eight_bit_rgb, open_image
from shards.partial_jpeg import run_length

QUALITY = 90
SUBSAMPLING = "4:2:0"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Resize:
    """How images are made smaller.

    Attributes:
        side: The short side that an image has at most, in pixels.
        quality: Of the JPEG, 1 to 95 as libjpeg counts.
        upright: Whether images are turned as EXIF says; those that are become JPEGs whatever their size.
        restarts: Whether they have restart markers, by which a crop is decoded without most of what is
            beside it (see :mod:`shards.partial_jpeg`).
    """

    side: int
    quality: int = QUALITY
    upright: bool = False
    restarts: bool = True

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"--resize {self.side}: no size", possible="1 and above, such as 256")
        if not 1 <= self.quality <= 95:
            raise UserError(f"--quality {self.quality}: no quality of a JPEG", possible="1 to 95")

    def asked(self) -> dict[str, int]:
        """Return what was asked, as a request stores it."""
        return {"side": self.side, "quality": self.quality, **({"upright": True} if self.upright else {})}

    def as_json(self) -> dict[str, int | str]:
        """Return what set.json says of it."""
        return {
            "short_side": self.side,
            "quality": self.quality,
            "subsampling": SUBSAMPLING,
            "filter": "bicubic",
            "encoder": encoder_version(),
            **({"upright": True} if self.upright else {}),
            **({"restart_markers": True} if self.restarts else {}),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Resize:
        """Return what :meth:`as_json` told of."""
        upright, restarts = (stored.get(name, False) for name in ("upright", "restart_markers"))
        return cls(stored["short_side"], stored["quality"], upright, restarts)

    def smaller(self, data: bytes) -> bytes | None:
        """Return an image as a JPEG of this short side; None if it stays as it is.

        What EXIF and colour profiles say is not kept.

        Raises:
            BadImage: If it cannot be decoded.
        """
        image = open_image(data, max_pixels=MAX_PIXELS)
        turn = _turn(image) if self.upright else None
        if min(image.size) <= self.side and turn is None:
            return None
        small = eight_bit_rgb(image)
        if turn is not None:
            small = small.transpose(turn)
        width, height = small.size
        scale = min(1, self.side / min(width, height))
        least = min(self.side, width, height)
        size = (max(least, round(width * scale)), max(least, round(height * scale)))
        small = small.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        small.save(
            file,
            "JPEG",
            quality=self.quality,
            subsampling=SUBSAMPLING,
            restart_marker_blocks=run_length(small.width) if self.restarts else 0,
        )
        return file.getvalue()


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an image upright; None if it is, or nothing legible says that it is not."""
    try:
        with bad_image():
            return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except BadImage:
        return None


def encoder_version() -> str:
    """Return what decides the bytes of a JPEG: Pillow and the library it was built with."""
    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__}, {library}"
