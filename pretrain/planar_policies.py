"""timm's RandAugment and AutoAugment on uint8 planes: its random numbers, its pixels, half of its time.

timm draws which operations an image gets and how strong they are, and Pillow carries them out on interleaved
pixels, one at a time in double precision. Here timm draws as before, and an operation that has a
counterpart below is carried out on [3, H, W] by whole rows. Each counterpart takes the steps of arithmetic
that Pillow takes, in the same order and precision, so that no bit differs; the others (rotations, blurs)
go through Pillow.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from pretrain import planar_colours as colours
from pretrain import planar_shifts as shifts
from pretrain.planar_scratch import Planes

Operation = Callable[..., Planes]

_OPERATIONS: dict[str, Operation] = {
    "AutoContrast": colours.auto_contrast,
    "Equalize": colours.equalize,
    "Invert": colours.invert,
    "Posterize": colours.posterize,
    "PosterizeIncreasing": colours.posterize,
    "PosterizeOriginal": colours.posterize,
    "Solarize": colours.solarize,
    "SolarizeIncreasing": colours.solarize,
    "SolarizeAdd": colours.solarize_add,
    "Color": colours.color,
    "ColorIncreasing": colours.color,
    "Contrast": colours.contrast,
    "ContrastIncreasing": colours.contrast,
    "Brightness": colours.brightness,
    "BrightnessIncreasing": colours.brightness,
    "Sharpness": colours.sharpness,
    "SharpnessIncreasing": colours.sharpness,
    "ShearX": shifts.shear_x,
    "ShearY": shifts.shear_y,
    "TranslateX": shifts.translate_x,
    "TranslateY": shifts.translate_y,
    "TranslateXRel": shifts.translate_x_rel,
    "TranslateYRel": shifts.translate_y_rel,
}

# Elsewhere compilers fuse multiplications with additions, and the last bit is Pillow's alone to tell.
_AS_PILLOW_ROUNDS = platform.machine().lower() in ("x86_64", "amd64")


class PlanarPolicy:
    """A policy of timm's on images of uint8 [3, H, W], which it may write into.

    Args:
        policy: timm's RandAugment or AutoAugment, whose operations are replaced.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        for op in _operations(policy):
            op.aug_fn = _OPERATIONS.get(op.name) or _ThroughPillow(op.aug_fn)
        self._uniform = hasattr(policy, "ops") and policy.choice_weights is None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image as the policy has it, in the same memory or other."""
        planes = image.contiguous().numpy()
        if not self._uniform:
            return torch.from_numpy(self._policy(planes))
        # What NumPy draws where timm lets it choose, which takes as long as an easy operation.
        for place in np.random.randint(0, len(self._policy.ops), self._policy.num_layers):
            planes = self._policy.ops[place](planes)
        return torch.from_numpy(planes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._policy!r})"


def on_planes(policy: Any) -> PlanarPolicy | None:
    """Return the same policy on planes; None where it is of a kind that only Pillow's images do for."""
    from timm.data.auto_augment import AutoAugment, RandAugment

    fits = _AS_PILLOW_ROUNDS and isinstance(policy, AutoAugment | RandAugment)
    return PlanarPolicy(policy) if fits else None


def on_pillows(policy: Any) -> Any:
    """Return a policy of timm's for Pillow's images, which makes black what is to keep no bits.

    Args:
        policy: RandAugment, AutoAugment or AugMix.
    """
    for op in _operations(policy):
        if op.name.startswith("Posterize"):
            op.aug_fn = partial(_posterized, op.aug_fn)
    return policy


def _operations(policy: Any) -> list[Any]:
    return list(policy.ops) if hasattr(policy, "ops") else [op for sub in policy.policy for op in sub]


def _posterized(
    operation: Callable[..., Image.Image], image: Image.Image, bits: int, **_: Any
) -> Image.Image:
    return operation(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class _ThroughPillow:
    def __init__(self, operation: Callable[..., Image.Image]) -> None:
        self._operation = operation

    def __call__(self, planes: Planes, *args: float, **options: Any) -> Planes:
        interleaved = Image.fromarray(np.stack(list(planes), axis=-1))
        done = np.asarray(self._operation(interleaved, *args, **options))
        # Of one pixel it is in order as it is, and Pillow's memory is not to be written to.
        return done.transpose(2, 0, 1).copy()
