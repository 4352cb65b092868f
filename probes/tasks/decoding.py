"""Image bytes of strangers, decoded with a limit and a name in every error."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from nml.errors import UserError

# Far above any photograph of the tasks, far below what exhausts a machine's memory.
MAX_PIXELS = 1 << 28


def decode_image(data: bytes, name: str) -> Image.Image:
    """Return the decoded image.

    Args:
        data: The encoded image.
        name: Its place, for an error.

    Raises:
        UserError: If the bytes are no image, are damaged, or unpack to too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"image {name}: {image.width} x {image.height} pixels", possible=f"up to {MAX_PIXELS}"
                )
            image.load()
            return image.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow names the object in memory, which tells nobody anything.
        reason = "no image, or damaged" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(
            f"image {name} cannot be decoded: {reason}", mend="repair it, or leave it out of the task"
        ) from error
