"""Image bytes of strangers, decoded with a limit and a name in every error."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from nml.errors import UserError

# Far above any photograph of the tasks, far below what exhausts a machine's memory.
MAX_PIXELS = 1 << 28


def decode_image(data: bytes, key: str) -> Image.Image:
    """Return the decoded image.

    Raises:
        UserError: If the bytes are no image, are damaged, or unpack to too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"image {key}: {image.width} x {image.height} pixels", possible=f"up to {MAX_PIXELS}"
                )
            image.load()
            return image.copy()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {key} cannot be decoded: {error}", mend="repair it, or leave it out of the task"
        ) from error
