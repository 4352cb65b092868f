"""The global random generators of Python, NumPy and torch: read, seeded, and put back as they were.

torch is imported when a function is called: what imports this module may be a command that needs none of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np


class RandomStates(NamedTuple):
    """The states of the generators, each as its library gives it; torch's is that of the CPU."""

    python: Any
    numpy: Any
    torch: Any


def random_states() -> RandomStates:
    """Return the states of the global generators."""
    import torch

    return RandomStates(random.getstate(), np.random.get_state(), torch.get_rng_state())


def seed_randomness(seed: int, *, every_device: bool = False) -> None:
    """Seed the global generators with a number of 64 bits; of torch's, that of the CPU, or all there are."""
    import torch

    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed reaches for every CUDA device too.
    seed_torch = torch.manual_seed if every_device else torch.default_generator.manual_seed
    seed_torch(seed & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Put the global generators back, at the end of a block, to where they were before it."""
    import torch

    before = random_states()
    try:
        yield
    finally:
        random.setstate(before.python)
        np.random.set_state(before.numpy)
        torch.set_rng_state(before.torch)


def equal_states(before: RandomStates, after: RandomStates) -> bool:
    """Whether no generator was drawn from between the two."""
    import torch

    numpy = [state.numpy[1].tolist() + list(state.numpy[2:]) for state in (before, after)]
    return torch.equal(before.torch, after.torch) and numpy[0] == numpy[1] and before.python == after.python


@contextmanager
def scrambled_randomness() -> Iterator[None]:
    """Set the generators to some other state, and back to what it was afterwards."""
    with randomness_kept():
        seed_randomness(123)
        yield
