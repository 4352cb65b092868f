"""What an objective gives the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from nml.recipe import Recipe
from pretrain.engines import Engine
from pretrain.loading import Batch
from pretrain.models import Architecture
from pretrain.zero_shot import Prompts


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


def build_objective(
    recipe: Recipe,
    *,
    rank: int,
    world_size: int,
    seed: int,
    micro_batches: int,
    num_classes: int,
    prompts: Prompts | None,
) -> Objective:
    """Return the objective of a recipe."""
    if recipe.objective == "clip":
        from pretrain.clip import Clip

        return Clip(
            recipe, rank=rank, world_size=world_size, seed=seed, micro_batches=micro_batches, prompts=prompts
        )
    from pretrain.classify import Classify

    return Classify(recipe, rank=rank, seed=seed, micro_batches=micro_batches, num_classes=num_classes)
