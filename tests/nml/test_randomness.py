"""Global random state is put back whatever happens in between, and a seed fixes all three generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from nml.randomness import random_states, randomness_kept, seed_randomness


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_a_block_leaves_the_generators_where_they_were() -> None:
    with randomness_kept():
        expected = draws()
    with randomness_kept():
        seed_randomness(1)
        draws()
    assert draws() == expected


def draw_and_fail() -> None:
    with randomness_kept():
        draws()
        raise ZeroDivisionError


def test_a_block_that_fails_leaves_them_too() -> None:
    with randomness_kept():
        expected = draws()
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert draws() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_a_seed_fixes_every_generator(seed: int) -> None:
    with randomness_kept():
        seed_randomness(seed)
        first = draws()
        seed_randomness(seed)
        again = draws()
        seed_randomness(seed ^ 1)
        other = draws()
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_states_are_read_without_a_draw() -> None:
    before = random_states()
    assert before.python == random_states().python
    assert torch.equal(before.torch, random_states().torch)
    assert (before.numpy[1] == random_states().numpy[1]).all()
