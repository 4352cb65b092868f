"""What an objective gives the training loop, and the randomness of a step that all of them share.

An objective is a subclass of :class:`Objective`, registered under the entry points ``nml.objectives``
(:mod:`nml.objectives`). ``python -m pretrain.objectives check NAME`` holds one to what is promised here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from nml.model_arguments import Library
from nml.objectives import NoOptions, Takes, read_options
from nml.randomness import seed_randomness
from nml.recipe import Recipe
from pretrain.engines import Engine, Tensors
from pretrain.loading import Batch, micro_batches
from pretrain.models import Architecture, architecture, build_network

if TYPE_CHECKING:
    from pretrain.zero_shot import Prompts


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The run that an objective is part of.

    Attributes:
        rank: This process.
        world_size: Number of processes.
        seed: Seed of the run.
        micro_batches: Parts that a rank's batch is cut into.
        num_classes: K of the set; 0 for captions.
        total_steps: Of the whole run, for what changes over it.
        prompts: What zero-shot validation asks; None if there is none.
    """

    rank: int = 0
    world_size: int = 1
    seed: int = 0
    micro_batches: int = 1
    num_classes: int = 0
    total_steps: int = 1
    prompts: Prompts | None = None


class Objective(ABC):
    """A loss over batches, what it is computed with, and how a network is judged between epochs.

    Nothing that an objective keeps
    may change but in :meth:`after_step`: a step that is not finite is left out, and leaves nothing behind.
    It draws from global generators in :meth:`backward` alone, after :func:`seed_step`.

    Args:
        recipe: The recipe.
        setting: The run.

    Attributes:
        takes: Sets it learns from: with classes, with captions, or any.
        library: Whose ``create_model`` makes the encoder.
        losses: Values of ``recipe.loss.name``; none where there is nothing to choose.
        loss_fields: The further fields of ``recipe.loss`` that it reads.
        views: Differently augmented images of a sample in a batch.
        Options: Dataclass of what stands in ``recipe.options`` (:class:`nml.objectives.Declared`).
        small: Values of a recipe with which it trains at 8 pixels, for the conformance kit.
        encoder: What the names of the encoder's tensors begin with in the network: the rest is not exported.
        judged_by: ``scores``: validation takes the best of the scores of :meth:`scorer`; ``neighbours``: of
            features, and looks at their neighbours.
        prompted: Whether :meth:`scorer` asks ``setting.prompts``.
        architecture: What rebuilds the encoder.
        text_transform: From a caption to token ids; None where captions are not read.
        options: An instance of the class's ``Options``.
        seen: What the forward passes of the last :meth:`backward` gave, detached, a row a sample in the order
            of the batch: ``scores`` [n, K] of classes, ``image_features`` and ``text_features`` [n, D] of
            captions. None where there is nothing of the kind, or where inputs were mixed.
    """

    takes: ClassVar[Takes]
    library: ClassVar[Library] = "timm"
    losses: ClassVar[tuple[str, ...]] = ()
    loss_fields: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 1
    Options: ClassVar[type[Any]] = NoOptions
    small: ClassVar[dict[str, Any]] = {}
    encoder: ClassVar[str] = ""
    judged_by: ClassVar[Literal["scores", "neighbours"]] = "scores"
    prompted: ClassVar[bool] = False

    architecture: Architecture
    text_transform: Callable[[str], Any] | None = None

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        self.recipe, self.setting = recipe, setting
        self.options = read_options(type(self), recipe.options)
        self.architecture = architecture(recipe, num_classes=0)
        self.seen: Tensors | None = None

    def network(self) -> nn.Module:
        """Return what is trained, with weights that depend on the seed alone. Called once."""
        return build_network(self.architecture, self.setting.seed)

    def begin(self, network: nn.Module) -> None:  # noqa: B027 - most have nothing to do
        """Take note of the network as the run begins with it, before an engine takes it."""

    @abstractmethod
    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """Add the gradient of the rank's batch; return its loss, a detached scalar.

        The loss and the gradient of the global batch are the mean of those of the ranks.
        """

    def mean_over_parts(
        self, engine: Engine, batch: Batch, step: int, loss: Callable[[Batch], torch.Tensor]
    ) -> torch.Tensor:
        """Do what :meth:`backward` does for a loss that is a mean over samples: part by part.

        Args:
            loss: The mean over the samples of a part, with their forward pass. Global generators say the same
                for it in any process and any run that goes on.
        """
        total = torch.zeros((), device=engine.device)
        parts = micro_batches(batch, self.setting.micro_batches)
        for number, part in enumerate(parts):
            seed_step(self.setting.seed, step, self.setting.rank, number)
            with engine.micro_step(last=number == len(parts) - 1):
                share = loss(part) / len(parts)
                engine.backward(share)
            total += share.detach()
        return total

    def empty_batch(self, size: int) -> Batch:
        """Return a batch of ``size`` samples of the right shapes that says nothing."""
        side, nothing = self.recipe.data.size, torch.zeros(size, dtype=torch.int64)
        return Batch(torch.zeros(size * self.views, 3, side, side), nothing, nothing)

    def after_step(self, engine: Engine, step: int) -> None:  # noqa: B027 - most have nothing to do
        """Follow the weights that step number ``step`` (0 is the first) has updated. Collective."""

    def tensors(self) -> Tensors:
        """Return what is saved with the run beside the network, equal on all ranks: teachers, queues.

        They are the same tensors from the beginning to the end, and a run that resumes finds them filled.
        """
        return {}

    @abstractmethod
    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from images to class scores [n, K], or features [n, D], for one validation.

        Collective.
        """


def seed_step(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed the global generators by what a micro-batch is, anew for each.

    Mixup, dropout and stochastic depth draw from them. There is no random state to save then, and none to
    restore wrongly.
    """
    digest = hashlib.blake2b(f"step {seed} {step} {rank} {micro_batch}".encode(), digest_size=8).digest()
    seed_randomness(int.from_bytes(digest, "big"), every_device=True)
