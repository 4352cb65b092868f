"""MoCo (He et al. 2020; v2 of Chen et al. 2020): a view, told from a queue of what a teacher said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from nml.errors import UserError
from nml.recipe import Recipe
from nml.recipe_checks import below_one, positive
from pretrain.engines import Engine, Tensors
from pretrain.engines.native import device_of_rank
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.objectives.embedding import Embedding, ProjectorOptions, views_of
from pretrain.objectives.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class MoCoOptions(ProjectorOptions):
    """Of the momentum contrast.

    Attributes:
        temperature: Divides the cosines.
        momentum: Share of itself that the teacher keeps in a step.
        queue: Samples whose teacher's answers are kept; a multiple of the global batch.
    """

    projector_norm: bool = False
    temperature: float = 0.1
    momentum: float = 0.99
    queue: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("recipe.options", self, "temperature", "queue")
        below_one("recipe.options", self, "momentum")


class MoCo(Embedding):
    """InfoNCE of the first view against the teacher's answer to the second and the queue.

    Raises:
        UserError: If the queue does not hold whole batches.
    """

    Options: ClassVar[type[Any]] = MoCoOptions
    small: ClassVar[dict[str, Any]] = {"options": {"hidden": 8, "dim": 4, "queue": 32}}

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        size, dim = self.options.queue, self.options.dim
        if size % recipe.global_batch:
            raise UserError(
                f"recipe.options.queue {size}: not a multiple of recipe.global_batch {recipe.global_batch}",
                mend=f"for example {max(1, size // recipe.global_batch) * recipe.global_batch}",
            )
        drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(setting.seed))
        self._queue = functional.normalize(drawn, dim=1).to(device_of_rank())
        self._next = torch.zeros((), dtype=torch.int64, device=device_of_rank())
        self._answers = torch.empty(0, dim)
        self._teacher: Teacher | None = None

    def begin(self, network: nn.Module) -> None:
        """See :class:`pretrain.objective.Objective`: the teacher begins as the network does."""
        self._teacher = Teacher(network, self.recipe)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        assert self._teacher is not None
        teacher, answers = self._teacher, []

        def loss(part: Batch) -> torch.Tensor:
            first, second = views_of(part)
            answer = functional.normalize(teacher(second)["projected"].float(), dim=1)
            answers.append(answer)
            asked = functional.normalize(engine.forward(first)["projected"].float(), dim=1)
            alike = (asked * answer).sum(1, keepdim=True)
            scores = torch.cat([alike, asked @ self._queue.T], dim=1) / self.options.temperature
            return -scores.log_softmax(1)[:, 0].mean()

        total = self.mean_over_parts(engine, batch, step, loss)
        self._answers = torch.cat(answers)
        return total

    def after_step(self, engine: Engine, step: int) -> None:
        """See :class:`pretrain.objective.Objective`: the teacher follows, the queue takes a batch."""
        assert self._teacher is not None
        self._teacher.follow(engine, momentum=self.options.momentum, step=step)
        every = [torch.empty_like(self._answers) for _ in range(self.setting.world_size)]
        dist.all_gather(every, self._answers)
        # In the order of the global batch, whatever the number of ranks that it was dealt to.
        newest = torch.stack(every, dim=1).flatten(0, 1)
        # The place stays on the device: a host that read it would wait for all steps before.
        places = self._next + torch.arange(len(newest), device=newest.device)
        self._queue.index_copy_(0, places, newest)
        self._next.copy_((self._next + len(newest)) % len(self._queue))

    def tensors(self) -> Tensors:
        """See :class:`pretrain.objective.Objective`."""
        assert self._teacher is not None
        return {"queue": self._queue, "next": self._next, **self._teacher.tensors()}
