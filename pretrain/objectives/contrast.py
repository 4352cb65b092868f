"""The contrast over the global batch that simclr and supcon share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.nn import functional

from nml.recipe_checks import positive
from pretrain.engines import Engine
from pretrain.loading import Batch, micro_batches
from pretrain.objective import seed_step
from pretrain.objectives.embedding import Embedding, ProjectorOptions
from pretrain.whole_batch import backward_of_whole


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(ProjectorOptions):
    """Of a contrast.

    Attributes:
        temperature: Divides the cosines.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("recipe.options", self, "temperature")


def contrastive_loss(
    anchors: torch.Tensor,
    classes: torch.Tensor,
    others: torch.Tensor,
    their_classes: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Return the mean over the anchors of Khosla et al. 2020, Eq. 2 (the sum outside of the logarithm).

    Args:
        anchors: [n, d], of any length; their products are divided by nothing.
        classes: Of each, int64 [n]; each has another member among ``others``.
        others: [N, d], the anchors among them.
        their_classes: int64 [N].
        first: Where the anchors begin among ``others``.
    """
    itself = torch.arange(len(anchors), device=anchors.device)[:, None] + first
    itself = itself == torch.arange(len(others), device=anchors.device)
    shares = (anchors @ others.T).masked_fill(itself, -torch.inf).log_softmax(1)
    alike = (classes[:, None] == their_classes) & ~itself
    return -(shares.masked_fill(~alike, 0.0).sum(1) / alike.sum(1)).mean()


class Contrast(Embedding):
    """The base of objectives that draw views together that :meth:`classes` counts as one.

    The loss is that of the global batch, whatever the number of processes and parts.
    """

    Options: ClassVar[type[Any]] = ContrastOptions

    @abstractmethod
    def classes(self, batch: Batch) -> torch.Tensor:
        """Return a number for each sample of the rank's batch, int64 [n]; views of one number attract."""

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        setting = self.setting
        classes = self.classes(batch)

        def projected(part: Batch) -> dict[str, torch.Tensor]:
            found: torch.Tensor = engine.forward(part.images)["projected"]
            # A row a sample: parts are joined by rows.
            return {"projected": found.unflatten(0, (self.views, -1)).transpose(0, 1)}

        loss, _ = backward_of_whole(
            engine,
            micro_batches(batch, setting.micro_batches),
            projected,
            lambda output: self._loss(output["projected"], classes),
            rows=("projected",),
            seed=lambda number: seed_step(setting.seed, step, setting.rank, number),
        )
        return loss

    def _loss(self, projected: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        own = functional.normalize(projected.float(), dim=-1).flatten(0, 1)
        kinds = classes.repeat_interleave(self.views)
        others, their_kinds = own, kinds
        if self.setting.world_size > 1:
            from torch.distributed.nn.functional import all_gather

            others = torch.cat(all_gather(own.contiguous()))
            gathered = [torch.empty_like(kinds) for _ in range(self.setting.world_size)]
            dist.all_gather(gathered, kinds)
            their_kinds = torch.cat(gathered)
        scaled = own / self.options.temperature
        return contrastive_loss(scaled, kinds, others, their_kinds, self.setting.rank * len(own))
