"""Supervised classification with timm's losses and mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nml.errors import UserError
from nml.recipe import Recipe
from pretrain.engines import Engine
from pretrain.loading import Batch
from pretrain.losses import OPTIONS, MeanCost, cost_of
from pretrain.models import architecture
from pretrain.objective import Objective, Setting


class Classify(Objective):
    """Cross-entropy, binary cross-entropy, or a loss that withstands wrong labels, over classes.

    Each rank mixes its own batch by its own draws.

    Raises:
        UserError: If timm's mixing cannot pair the samples of a micro-batch.
    """

    takes = "class"
    losses = ("cross-entropy", "bce", "gce", "sce")
    loss_fields = ("smoothing", "mixup", "cutmix", "switch", "bce_threshold", *OPTIONS)

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        self.architecture = architecture(recipe, setting.num_classes)
        _check_mixing(recipe, setting)
        self._mix = _mixing(recipe, setting.num_classes)
        self._criterion = _criterion(recipe, mixed=self._mix is not None)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        seen: list[torch.Tensor] = []

        def loss(part: Batch) -> torch.Tensor:
            images, targets = part.images, part.targets
            if self._mix is not None:
                images, targets = self._mix(images, targets)
            scores = engine.forward(images).float()
            seen.append(scores.detach())
            found: torch.Tensor = self._criterion(scores, targets)
            return found

        total = self.mean_over_parts(engine, batch, step, loss)
        # Of mixed images no class is the one that was given.
        self.seen = {"scores": torch.cat(seen)} if self._mix is None else None
        return total

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


def _check_mixing(recipe: Recipe, setting: Setting) -> None:
    size = recipe.global_batch // setting.world_size // setting.micro_batches
    if (recipe.loss.mixup or recipe.loss.cutmix) and size % 2:
        raise UserError(
            f"recipe.loss: mixup and cutmix pair samples, and a micro-batch has {size}",
            mend="choose a number of processes that gives each an even batch",
        )
