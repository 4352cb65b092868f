"""What an objective gives the training loop, and the randomness of a step that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

from nml.randomness import seed_randomness
from pretrain.engines import Engine
from pretrain.loading import Batch
from pretrain.models import Architecture


class Objective(Protocol):
    """A loss over batches, and how a network is judged between epochs.

    Attributes:
        architecture: What rebuilds the network.
        text_transform: From a caption to token ids; None for classes.
    """

    architecture: Architecture
    text_transform: Callable[[str], Any] | None

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """Add the gradient of the rank's batch; return its loss, a detached scalar."""
        ...

    def empty_batch(self, size: int) -> Batch:
        """Return a batch of the right shapes that says nothing."""
        ...

    def after_step(self, engine: Engine) -> None:
        """Project the weights onto what they may be."""
        ...

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from images to class scores [n, K], for one validation. Collective."""
        ...


def seed_step(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed the global generators by what a micro-batch is, anew for each.

    Mixup, dropout and stochastic depth draw from them. There is no random state to save then, and none to
    restore wrongly.
    """
    digest = hashlib.blake2b(f"step {seed} {step} {rank} {micro_batch}".encode(), digest_size=8).digest()
    seed_randomness(int.from_bytes(digest, "big"), every_device=True)
