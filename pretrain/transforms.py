"""From a PIL image to a normalised tensor [3, H, W]: timm's and torchvision's own transforms.

They draw from global random state, which shards.dataset sets per (seed, epoch, sample, view).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretrain.recipe import Data


def training_transform(data: Data) -> Callable[[Any], Any]:
    """Return the augmentation of a recipe."""
    from timm.data import create_transform

    if data.crop != "rrc":
        return _plain_crop(data)
    transform: Callable[[Any], Any] = create_transform(
        data.size,
        is_training=True,
        scale=data.scale,
        hflip=data.flip,
        color_jitter=data.color_jitter,
        auto_augment=data.auto_augment or None,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        re_prob=data.erasing,
        re_mode="pixel",
    )
    return transform


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
        steps.append(rand_augment_transform(data.auto_augment, {"img_mean": grey}))
    if data.color_jitter:
        steps.append(T.ColorJitter(*[data.color_jitter] * 3))
    steps += [T.ToTensor(), T.Normalize(data.mean, data.std)]
    if data.erasing:
        steps.append(RandomErasing(data.erasing, mode="pixel", device="cpu"))
    chain: Callable[[Any], Any] = T.Compose(steps)
    return chain


class _ResizeIfNeeded:
    def __init__(self, size: int, mode: Any) -> None:
        self.size, self.mode = size, mode

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms import functional

        if image.size == (self.size, self.size):
            return image
        return functional.resize(image, [self.size, self.size], self.mode)
