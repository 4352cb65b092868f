"""The part that every image encoder in PyTorch shares: batch, forward, features back as float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml.errors import UserError
from probes.encoders.encoder import EncoderInfo, Settings
from probes.samples import Content


class TorchImageEncoder:
    """A frozen image model.

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
        self._model = model.to(memory_format=torch.channels_last)
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

        with torch.inference_mode():
            batch = torch.stack(list(prepared)).to(self._device, memory_format=torch.channels_last)
            features = self._forward(batch).flatten(1)
            return features.to("cpu", torch.float32).numpy()
