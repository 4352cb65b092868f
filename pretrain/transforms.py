"""From an image to a tensor [3, H, W]: the project's fast crop, then timm's and torchvision's own transforms.

What comes out is uint8 where nothing in the recipe needs floats before: loaders move a quarter of
the bytes then, and :func:`normalised` finishes a whole batch on the training device.

Transforms draw from global random state, which shards.dataset sets per (seed, epoch, sample, view).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from nml.recipe import Data
from pretrain.planar_policies import on_pillows, on_planes
from shards.augment import RandomResizedCrop
from shards.yuv import Planes

Channels = tuple[float, float, float]
"""A number for each of red, green and blue."""


def training_transform(data: Data) -> Callable[[Any], Any]:
    """Return the augmentation of a recipe: uint8 [3, S, S], or normalised float32 if it erases."""
    return _RandomResizedCrop(data) if data.crop == "rrc" else _plain_crop(data)


def normalised(
    images: torch.Tensor, mean: Channels, std: Channels, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float32 [N, 3, H, W], equal to torchvision's ToTensor and Normalize on each image.

    Args:
        images: uint8 [N, 3, H, W]; anything else is taken for normalised and returned as it is.
        mean: Of each channel, of values in [0, 1].
        std: The same of the standard deviation.
        out: float32 of the images' shape, to write into where they are uint8.
    """
    if images.dtype != torch.uint8:
        return images
    floats = images.float() if out is None else out.copy_(images)
    # The same steps in the same order, so that the last bit is the same too.
    return floats.div_(255).sub_(_constant(mean, images.device)).div_(_constant(std, images.device))


@lru_cache
def _constant(values: Channels, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


def testing_transform(data: Data) -> Callable[[Any], Any]:
    """Return resize, central crop and normalisation: what the export's preprocessing describes."""
    from timm.data import create_transform

    transform: Callable[[Any], Any] = create_transform(
        data.test_size,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
        mean=data.mean,
        std=data.std,
    )
    return transform


def _plain_crop(data: Data) -> Callable[[Any], Any]:
    """Return the augmentation of small images: no resizing but to the training size."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.random_erasing import RandomErasing
    from torchvision import transforms as T

    mode = T.InterpolationMode(data.interpolation)
    steps: list[Callable[[Any], Any]] = [_ResizeIfNeeded(data.size, mode)]
    if data.crop == "pad":
        steps.append(T.RandomCrop(data.size, padding=data.size // 8))
    if data.flip:
        steps.append(T.RandomHorizontalFlip(data.flip))
    if data.auto_augment:
        grey = tuple(round(255 * mean) for mean in data.mean)
        steps.append(on_pillows(rand_augment_transform(data.auto_augment, {"img_mean": grey})))
    steps += _colours(data)
    if data.erasing:
        steps += [T.ToTensor(), T.Normalize(data.mean, data.std)]
        steps.append(RandomErasing(data.erasing, mode="pixel", device="cpu"))
    else:
        steps.append(T.PILToTensor())
    chain: Callable[[Any], Any] = T.Compose(steps)
    return chain


def _jitter(data: Data) -> tuple[float, ...]:
    """Return the strengths of brightness, contrast, saturation and hue, as timm takes them."""
    return (*[data.color_jitter] * 3, data.jitter_hue)


def _colours(data: Data) -> list[Callable[[Any], Any]]:
    """Return what timm does to colours, for images that it does not crop."""
    from torchvision import transforms as T

    steps: list[Callable[[Any], Any]] = []
    if data.color_jitter:
        jitter = T.ColorJitter(*_jitter(data))
        steps.append(jitter if data.jitter_prob == 1 else T.RandomApply([jitter], data.jitter_prob))
    if data.grayscale:
        steps.append(T.RandomGrayscale(data.grayscale))
    if data.blur:
        steps.append(T.RandomApply([T.GaussianBlur(23)], data.blur))
    return steps


class _RandomResizedCrop:
    """Crop and flip straight from the encoded image, then timm's further steps, if the recipe has any."""

    def __init__(self, data: Data) -> None:
        from timm.data import create_transform
        from torchvision import transforms as T

        further = data.color_jitter or data.auto_augment or data.erasing or data.grayscale or data.blur
        self._crop = RandomResizedCrop(
            size=data.size,
            scale=data.scale,
            flip=data.flip,
            interpolation=data.interpolation,
            packed=not further and data.size % 2 == 0,
        )
        _, policy, final = create_transform(
            data.size,
            is_training=True,
            separate=True,
            color_jitter=_jitter(data),
            color_jitter_prob=data.jitter_prob if data.jitter_prob < 1 else None,
            grayscale_prob=data.grayscale,
            gaussian_blur_prob=data.blur,
            auto_augment=data.auto_augment or None,
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
            # Erasing fills in normal noise, so it needs normalised values.
            normalize=bool(data.erasing),
            re_prob=data.erasing,
            re_mode="pixel",
        )
        if data.auto_augment:
            on_pillows(policy.transforms[0])
        self._further = T.Compose(_further(policy, final)) if further else None

    def __call__(self, image: Any) -> torch.Tensor:
        return self._finish(self._crop(image))

    def from_bytes(self, data: bytes, *, max_pixels: int) -> torch.Tensor:
        return self._finish(self._crop.from_bytes(data, max_pixels=max_pixels))

    def from_planes(self, planes: Planes) -> torch.Tensor:
        return self._finish(self._crop.from_planes(planes))

    def _finish(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if self._further is None else self._further(pixels)


def _further(policy: Any, final: Any) -> list[Callable[[Any], Any]]:
    """Return timm's steps after the crop, on planes from the first that only takes Pillow's images."""
    from timm.data.transforms import MaybePILToTensor
    from torchvision import transforms as T

    first, *others = policy.transforms or [None]
    planar = on_planes(first)
    steps: list[Callable[[Any], Any]] = [planar] if planar else []
    rest = [*(others if planar else policy.transforms), *final.transforms]
    if planar and all(isinstance(step, MaybePILToTensor) for step in rest):
        return steps
    return [*steps, T.ToPILImage(), *rest]


class _ResizeIfNeeded:
    def __init__(self, size: int, mode: Any) -> None:
        self.size, self.mode = size, mode

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms import functional

        if image.size == (self.size, self.size):
            return image
        return functional.resize(image, [self.size, self.size], self.mode)
