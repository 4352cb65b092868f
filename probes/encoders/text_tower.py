"""Image encoders with a text tower: what it says of the names of classes, in the space of the features."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml.errors import UserError
from probes.encoders.encoder import EncoderInfo, Settings
from probes.encoders.torch_images import TorchImageEncoder
from probes.encoders.weights import hash_model

TEMPLATE = "a photo of a {}."
"""What the text tower reads of a class (Radford et al. 2021, section 3.1.4)."""
_SYNSET = re.compile(r"n\d{8}")
_BATCH = 64


class TwoTowerEncoder(TorchImageEncoder):
    """A frozen CLIP of open_clip: images as any encoder, and the names of classes.

    Args:
        info: What the image tower is made of.
        model: Both towers, weights loaded.
        transform: From an image to a tensor [C, H, W].
        settings: Device and batch size.
        architecture: The name by which open_clip knows the model and its tokenizer.
    """

    def __init__(
        self,
        info: EncoderInfo,
        model: Any,
        transform: Callable[[Image.Image], Any],
        settings: Settings,
        *,
        architecture: str,
    ) -> None:
        super().__init__(info, model.visual, model.encode_image, transform, settings)
        self._both = model
        self._architecture = architecture

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """All that class embeddings depend on besides the names."""
        return {"template": TEMPLATE, "weights_sha256": hash_model(self._both)}

    def class_embeddings(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a unit vector for each class, float32 [K, D].

        Raises:
            UserError: If the names are WordNet ids, but not the 1,000 of ImageNet.
        """
        import open_clip
        import torch

        prompts = [TEMPLATE.replace("{}", name) for name in _spoken(names)]
        # Some tokenizers are fetched: only now that they are asked for.
        context = getattr(self._both, "context_length", None)
        tokenizer = open_clip.get_tokenizer(self._architecture, context_length=context)
        model = self._both.to(self._device).eval().requires_grad_(False)
        with torch.inference_mode():
            parts = [
                model.encode_text(tokenizer(prompts[start : start + _BATCH]).to(self._device))
                for start in range(0, len(prompts), _BATCH)
            ]
            found = torch.nn.functional.normalize(torch.cat(parts).float(), dim=1)
        embeddings: npt.NDArray[np.float32] = found.cpu().numpy()
        return embeddings


def _spoken(names: Sequence[str]) -> list[str]:
    """Return names as they stand in a sentence."""
    if not all(_SYNSET.fullmatch(name) for name in names):
        return [name.replace("_", " ") for name in names]
    from open_clip import IMAGENET_CLASSNAMES

    if len(names) != len(IMAGENET_CLASSNAMES) or list(names) != sorted(names):
        raise UserError(
            f"classes are WordNet ids ({names[0]}), which say nothing in a prompt",
            mend="name the classes in words, or choose heads that need no class text embeddings",
        )
    return list(IMAGENET_CLASSNAMES)
