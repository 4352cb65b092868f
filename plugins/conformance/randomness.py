"""The global random generators, which a head leaves alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_states() -> tuple[Any, ...]:
    """Return the states of the global random generators of torch, numpy and Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def equal_states(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether no generator was drawn from between the two."""
    numpy = [state[1].tolist() + list(state[2:]) for state in (before[1], after[1])]
    return torch.equal(before[0], after[0]) and numpy[0] == numpy[1] and before[2] == after[2]


@contextmanager
def scrambled_randomness() -> Iterator[None]:
    """Set the generators to some other state, and back to what it was afterwards."""
    torch_state, numpy_state, python_state = random_states()
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
