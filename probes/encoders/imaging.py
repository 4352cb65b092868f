"""Image preprocessing from the values that an export and timm agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from nml.errors import UserError

FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct")
DEFAULT_CROP_MODE = "center"


def image_transform(preprocessing: Mapping[str, Any], where: str) -> Callable[[Image.Image], Any]:
    """Return the evaluation transform: resize, crop, normalise.

    Args:
        preprocessing: ``input_size`` [C, H, W], ``mean`` and ``std`` of C values in 0..1,
            ``interpolation`` by name, ``crop_pct``; perhaps timm's ``crop_mode``, ``center`` without it.
        where: What to name in an error.

    Returns:
        A callable from an image to a float tensor [C, H, W].

    Raises:
        UserError: If a field is missing.
    """
    from timm.data import create_transform

    missing = [field for field in FIELDS if field not in preprocessing]
    if missing:
        raise UserError(f"{where}: preprocessing lacks {', '.join(missing)}", mend="export the encoder again")
    channels = preprocessing["input_size"][0]
    transform = create_transform(
        input_size=tuple(preprocessing["input_size"]),
        is_training=False,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing.get("crop_mode", DEFAULT_CROP_MODE),
    )

    def apply(image: Image.Image) -> Any:
        return transform(image.convert("L" if channels == 1 else "RGB"))

    return apply


def resolved(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that features depend on, as plain JSON values."""
    mode = str(preprocessing.get("crop_mode") or DEFAULT_CROP_MODE)
    return {
        "input_size": [int(size) for size in preprocessing["input_size"]],
        "mean": [float(value) for value in preprocessing["mean"]],
        "std": [float(value) for value in preprocessing["std"]],
        "interpolation": str(preprocessing["interpolation"]),
        "crop_pct": float(preprocessing["crop_pct"]),
        # The usual mode is left out: exports do not name it, and stored features keep their key.
        **({} if mode == DEFAULT_CROP_MODE else {"crop_mode": mode}),
    }
