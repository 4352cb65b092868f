"""The global random generators, which a head leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nml.randomness import RandomStates, randomness_kept, seed_randomness


def equal_states(before: RandomStates, after: RandomStates) -> bool:
    """Whether no generator was drawn from between the two."""
    numpy = [state.numpy[1].tolist() + list(state.numpy[2:]) for state in (before, after)]
    return torch.equal(before.torch, after.torch) and numpy[0] == numpy[1] and before.python == after.python


@contextmanager
def scrambled_randomness() -> Iterator[None]:
    """Set the generators to some other state, and back to what it was afterwards."""
    with randomness_kept():
        seed_randomness(123)
        yield
