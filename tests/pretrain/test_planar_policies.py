"""timm's policies on planes: what timm draws, and Pillow's pixels to the last bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform

from nml.randomness import equal_states, random_states, randomness_kept, seed_randomness
from nml.recipe import Data
from pretrain.planar_policies import on_pillows, on_planes
from pretrain.transforms import training_transform

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
MEAN = (124, 116, 104)
Planes = npt.NDArray[np.uint8]

pytestmark = pytest.mark.skipif(
    on_planes(rand_augment_transform("rand-m7")) is None, reason="this machine's Pillow rounds its own way"
)


def picture(seed: int, height: int, width: int) -> Planes:
    """Return planes [3, H, W] with noise, a smooth part and flat ones, where results are whole numbers."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (3, height, width)).astype(np.uint8)
    image[:, : height // 3] = np.linspace(0, 255, width)
    image[:, :, width // 2 :] = generator.integers(0, 256, (3, 1, 1))
    image[:, height // 2 :, : width // 3] = generator.choice([0, 40, 255], (3, 1, 1))
    return image


def as_pillow(planes: Planes) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def same(policy: Any, planar: Any, planes: Planes, seed: int) -> bool:
    """Whether both make the same image of the same random numbers, and draw as many."""
    seed_randomness(seed)
    expected, after = np.asarray(policy(as_pillow(planes))).transpose(2, 0, 1), random_states()
    seed_randomness(seed)
    found = planar(torch.from_numpy(planes.copy())).numpy()
    return np.array_equal(found, expected) and equal_states(after, random_states())


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    magnitude=st.floats(0, 9.9) | st.integers(0, 9),
    filters=st.sampled_from([BILINEAR, BICUBIC, (BILINEAR, BICUBIC)]),
)
def test_every_operation_gives_pillows_pixels_from_the_same_random_numbers(
    seed: int, height: int, width: int, magnitude: float, filters: Any
) -> None:
    hparams = {"img_mean": MEAN, "interpolation": filters, "translate_const": 30}
    planes = picture(seed, height, width)
    with randomness_kept():
        for name in sorted(auto_augment.NAME_TO_OP):
            # Timm asks for no bits at all there, which Pillow refuses.
            level = max(magnitude, 2.6) if name == "Posterize" else magnitude

            def policy(name: str = name, level: float = level) -> Any:
                return auto_augment.RandAugment([AugmentOp(name, 1.0, level, hparams)], num_layers=2)

            assert same(policy(), on_planes(policy()), planes, seed), (name, level)


@pytest.mark.parametrize("name", ["rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd101-tweights", "original-mstd0.5"])
def test_a_policy_on_planes_is_timms(name: str) -> None:
    make = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    theirs, ours = (make(name, {"img_mean": MEAN}) for _ in range(2))
    planar = on_planes(ours)
    with randomness_kept():
        assert all(same(theirs, planar, picture(seed, 24, 24), seed) for seed in range(40))


def test_a_shift_that_rounding_tears_apart_is_pillows() -> None:
    # 3.5 and more in places, so that some pixels of a line are shifted by three, and others by two.
    planes, shift = picture(0, 40, 40), 2.9999999999999996
    for name in ("TranslateX", "TranslateY"):
        hparams = {"img_mean": MEAN, "interpolation": BICUBIC, "translate_const": shift}
        theirs, ours = (auto_augment.RandAugment([AugmentOp(name, 1.0, 10, hparams)], 1) for _ in range(2))
        planar = on_planes(ours)
        with randomness_kept():
            assert all(same(theirs, planar, planes, seed) for seed in range(4))


def test_images_that_are_to_keep_no_bit_become_black() -> None:
    def policy() -> Any:
        return auto_augment.RandAugment([AugmentOp("PosterizeIncreasing", 1.0, 10)], 1)

    black = on_planes(policy())
    assert black is not None
    random.seed(0)
    assert not black(torch.full((3, 4, 4), 255, dtype=torch.uint8)).any()
    assert not np.asarray(on_pillows(policy())(Image.new("RGB", (4, 4), (255, 255, 255)))).any()


@pytest.mark.parametrize(("crop", "name"), [("pad", "rand-m10-inc1"), ("rrc", "augmix-m10-mstd0.5")])
def test_a_recipe_may_ask_for_all_of_a_magnitude(crop: Any, name: str) -> None:
    transform = training_transform(Data(size=8, test_size=8, crop=crop, auto_augment=name))
    image = Image.fromarray(picture(0, 8, 8).transpose(1, 2, 0).copy())
    with randomness_kept():
        seed_randomness(0)
        assert all(transform(image).shape == (3, 8, 8) for _ in range(150))
