"""What image encoders in PyTorch share: batches, and preprocessing by values that exports and timm know."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml.errors import UserError
from nml.untrusted import Untrusted, shown, typed
from probes.encoders.encoder import EncoderInfo, Settings
from probes.samples import Content

FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct")
DEFAULT_CROP_MODE = "center"
CROP_MODES = (DEFAULT_CROP_MODE, "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Of what is read from a file: larger ones are no encoder's, and take all memory.
LARGEST_SIDE = 4096
LARGEST_CROP = 2.0
# What libraries call the first token of an image.
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class TorchImageEncoder:
    """A frozen image model.

    Attributes:
        module: The module.

    Args:
        info: What it is made of.
        model: The module, weights loaded.
        forward: From a batch [B, C, H, W] on the model's device to features [B, D].
        transform: From an image to a tensor [C, H, W].
        settings: Device and batch size.
    """

    def __init__(
        self,
        info: EncoderInfo,
        model: Any,
        forward: Callable[[Any], Any],
        transform: Callable[[Image.Image], Any],
        settings: Settings,
    ) -> None:
        import torch

        self.info = info
        self.batch_size = settings.batch_size
        self._device = settings.torch_device()
        # Frozen also means eval: with batch statistics, features would depend on their batch.
        model = model.to(self._device).eval().requires_grad_(False)
        # Convolutions are faster with channels last (a ResNet-18 on a CPU by 1.4), and equal up to rounding.
        self.module = model.to(memory_format=torch.channels_last)
        self._forward = forward
        self._transform = transform

    def prepare(self, content: Content) -> Any:
        """Return the image as a tensor [C, H, W]."""
        if not isinstance(content, Image.Image):
            raise UserError(
                f"encoder {self.info.name} reads images, the task holds text",
                mend="choose a task of images, or --encoder transformers:NAME",
            )
        with warnings.catch_warnings():
            # Pillow warns of odd EXIF and palettes; neither changes the pixels.
            warnings.simplefilter("ignore")
            return self._transform(content)

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return features, float32 [B, D]."""
        import torch

        features: npt.NDArray[np.float32] = self.run(prepared)[0].to("cpu", torch.float32).numpy()
        return features

    def run(self, prepared: Sequence[Any]) -> tuple[Any, Callable[[Any], Any]]:
        """Return features [B, D], and what makes features of a layer's output."""
        import torch

        with torch.inference_mode():
            return self.features(prepared), functools.partial(pool_layer, self.module)

    def features(self, prepared: Sequence[Any]) -> Any:
        """Return features [B, D] on the model's device, with gradients where these are asked for."""
        import torch

        batch = torch.stack(list(prepared)).to(self._device, memory_format=torch.channels_last)
        return self._forward(batch).flatten(1)


def pool_layer(module: Any, states: Any) -> Any:
    """Return features [B, D] of what a layer of a network of images gives.

    Of maps [B, C, H, W] it is the mean over the places; of tokens [B, T, D] the class token where the network
    has one, else their mean; vectors [B, D] stay.
    """
    if states.ndim == 4:
        trunk = getattr(module, "trunk", module)
        # timm's Swin and its like keep the channels last.
        return states.mean((1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else (2, 3))
    if states.ndim == 3:
        return states[:, 0] if has_class_token(module) else states.mean(1)
    return states


def has_class_token(module: Any) -> bool:
    """Whether the first token of a network of images stands for the whole image."""
    return any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in module.named_parameters())


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
