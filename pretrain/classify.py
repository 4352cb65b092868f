"""Supervised classification with timm's losses and mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nml.errors import UserError
from nml.recipe import Recipe
from pretrain.engines import Engine
from pretrain.loading import Batch, micro_batches
from pretrain.losses import MeanCost, cost_of
from pretrain.models import architecture
from pretrain.objective import seed_step


class Classify:
    """Cross-entropy, binary cross-entropy, or a loss that withstands wrong labels, over classes.

    Args:
        recipe: The recipe.
        rank: This process, which mixes its own batch by its own draws.
        seed: Seed of the run.
        micro_batches: Parts that a rank's batch is cut into.
        num_classes: K.
    """

    text_transform: Callable[[str], Any] | None = None

    def __init__(self, recipe: Recipe, *, rank: int, seed: int, micro_batches: int, num_classes: int) -> None:
        self.architecture = architecture(recipe, num_classes)
        self._size = recipe.data.size
        self._rank = rank
        self._seed = seed
        self._micro_batches = micro_batches
        self._mix = _mixing(recipe, num_classes)
        self._criterion = _criterion(recipe, mixed=self._mix is not None)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        total = torch.zeros((), device=engine.device)
        parts = micro_batches(batch, self._micro_batches)
        for number, part in enumerate(parts):
            seed_step(self._seed, step, self._rank, number)
            images, targets = part.images, part.targets
            if self._mix is not None:
                images, targets = self._mix(images, targets)
            with engine.micro_step(last=number == len(parts) - 1):
                loss = self._criterion(engine.forward(images).float(), targets) / len(parts)
                engine.backward(loss)
            total += loss.detach()
        return total

    def empty_batch(self, size: int) -> Batch:
        """See :class:`pretrain.objective.Objective`."""
        images = torch.zeros(size, 3, self._size, self._size)
        return Batch(images, torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64))

    def after_step(self, engine: Engine) -> None:
        """See :class:`pretrain.objective.Objective`: any weights will do."""

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """See :class:`pretrain.objective.Objective`."""

        def score(images: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = engine.forward(images)
            return scores.float()

        return score


def _mixing(recipe: Recipe, num_classes: int) -> Callable[..., Any] | None:
    loss = recipe.loss
    if not (loss.mixup or loss.cutmix):
        return None
    from timm.data import Mixup

    mix: Callable[..., Any] = Mixup(
        mixup_alpha=loss.mixup,
        cutmix_alpha=loss.cutmix,
        switch_prob=loss.switch,
        label_smoothing=loss.smoothing,
        num_classes=num_classes,
    )
    return mix


def _criterion(recipe: Recipe, *, mixed: bool) -> nn.Module:
    """Return the loss; mixing has smoothed the targets already."""
    from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

    loss = recipe.loss
    if (cost := cost_of(loss)) is not None:
        return MeanCost(cost)
    if loss.name == "bce":
        bce: nn.Module = BinaryCrossEntropy(smoothing=loss.smoothing, target_threshold=loss.bce_threshold)
        return bce
    if mixed:
        soft: nn.Module = SoftTargetCrossEntropy()
        return soft
    return nn.CrossEntropyLoss(label_smoothing=loss.smoothing)


def check_mixing(recipe: Recipe, rank_batch: int) -> None:
    """Refuse batches that timm's mixing cannot pair.

    Raises:
        UserError: If a micro-batch has an odd number of samples.
    """
    if (recipe.loss.mixup or recipe.loss.cutmix) and rank_batch % 2:
        raise UserError(
            f"recipe.loss: mixup and cutmix pair samples, and a micro-batch has {rank_batch}",
            mend="choose a number of processes that gives each an even batch",
        )
