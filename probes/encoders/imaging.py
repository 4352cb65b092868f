"""Image preprocessing from the values that an export and timm agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from nml.errors import UserError
from nml.untrusted import Untrusted, shown, typed

FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct")
DEFAULT_CROP_MODE = "center"
CROP_MODES = (DEFAULT_CROP_MODE, "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Of what is read from a file: larger ones are no encoder's, and take all memory.
LARGEST_SIDE = 4096
LARGEST_CROP = 2.0


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


def checked(preprocessing: Any, where: str) -> dict[str, Any]:
    """Return :func:`resolved` of what a file says of preprocessing.

    Raises:
        UserError: If a field is missing, of another type, or asks for what no image is.
    """
    missing = [name for name in FIELDS if not isinstance(preprocessing, dict) or name not in preprocessing]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}", mend="export the encoder again")
    try:
        found = typed(_Preprocessing, preprocessing)
    except Untrusted as error:
        raise UserError(f"{where}: {error}", mend="export the encoder again") from error
    channels = found.input_size[:1]
    if (
        len(found.input_size) != 3
        or channels not in ((1,), (3,))
        or not {len(found.mean), len(found.std)} <= {1, *channels}
        or not all(0 < size <= LARGEST_SIDE for size in found.input_size)
        or not all(std > 0 for std in found.std)
        or not 0 < found.crop_pct <= LARGEST_CROP
        or found.interpolation not in INTERPOLATIONS
        or (found.crop_mode or DEFAULT_CROP_MODE) not in CROP_MODES
    ):
        raise UserError(
            f"{where} {shown(preprocessing)}: no preprocessing of images",
            possible=f"input_size [3, H, W] up to {LARGEST_SIDE}, mean and std of 3 values, "
            f"interpolation {', '.join(INTERPOLATIONS)}, crop_pct above 0",
            mend="export the encoder again",
        )
    return resolved(preprocessing)


@dataclass(frozen=True)
class _Preprocessing:
    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str | None = None


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
