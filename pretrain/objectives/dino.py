"""DINO (Caron et al. 2021): a network says of a view what its own average says of another one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from nml.recipe import Recipe
from nml.recipe_checks import below_one, positive
from pretrain.engines import Engine, Tensors
from pretrain.engines.native import device_of_rank
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.objectives.embedding import Embedding, views_of
from pretrain.objectives.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DinoOptions:
    """Of the self-distillation; the defaults are the authors' program's but for ``prototypes``.

    Attributes:
        hidden: Values of the hidden layers of the projector.
        bottleneck: Values before the prototypes.
        prototypes: K; theirs is 65536, for ImageNet.
        temperature: Of the network that is trained.
        teacher_temperature: Of the teacher, lower: its answers are to be sharper.
        momentum: Share of itself that the teacher keeps in a step at the beginning; at the end it is 1.
        center_momentum: The same of the centre, the mean of its answers, which is taken from them.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 4096
    temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.996
    center_momentum: float = 0.9

    def __post_init__(self) -> None:
        positive("recipe.options", self, "hidden", "bottleneck", "prototypes")
        positive("recipe.options", self, "temperature", "teacher_temperature")
        below_one("recipe.options", self, "momentum", "center_momentum")


class Prototypes(nn.Module):
    """Cosines to directions that are learnt.

    Args:
        dim: Values of an input.
        number: K.
    """

    def __init__(self, dim: int, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [n, K] of [n, dim]."""
        return functional.normalize(values, dim=1) @ functional.normalize(self.weight, dim=1).T


class Dino(Embedding):
    """Cross-entropy of each view's answer with the teacher's to the other view."""

    Options: ClassVar[type[Any]] = DinoOptions
    small: ClassVar[dict[str, Any]] = {"options": {"hidden": 8, "bottleneck": 4, "prototypes": 8}}

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        self._center = torch.zeros(self.options.prototypes, device=device_of_rank())
        self._answers = torch.zeros_like(self._center)
        self._teacher: Teacher | None = None

    def projector(self, features: int) -> nn.Module:
        """See :class:`pretrain.objectives.embedding.Embedding`: three layers and prototypes."""
        hidden, dim = self.options.hidden, self.options.bottleneck
        return nn.Sequential(
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, dim),
            Prototypes(dim, self.options.prototypes),
        )

    def begin(self, network: nn.Module) -> None:
        """See :class:`pretrain.objective.Objective`: the teacher begins as the network does."""
        self._teacher = Teacher(network, self.recipe)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        assert self._teacher is not None
        teacher, options = self._teacher, self.options
        means = []

        def loss(part: Batch) -> torch.Tensor:
            # [2, n, K]
            answers = torch.stack([teacher(view)["projected"].float() for view in views_of(part)])
            means.append(answers.mean((0, 1)))
            wanted = ((answers - self._center) / options.teacher_temperature).softmax(2)
            said = engine.forward(part.images)["projected"].float().unflatten(0, (2, -1))
            guessed = (said / options.temperature).log_softmax(2)
            # Each view is held to what is said of the other.
            return -(wanted * guessed.flip(0)).sum(2).mean()

        total = self.mean_over_parts(engine, batch, step, loss)
        self._answers = torch.stack(means).mean(0)
        return total

    def after_step(self, engine: Engine, step: int) -> None:
        """See :class:`pretrain.objective.Objective`: teacher and centre follow."""
        assert self._teacher is not None
        left = (1 + math.cos(math.pi * step / self.setting.total_steps)) / 2
        momentum = 1 - (1 - self.options.momentum) * left
        self._teacher.follow(engine, momentum=momentum, step=step)
        dist.all_reduce(self._answers)
        self._center.lerp_(self._answers / self.setting.world_size, 1 - self.options.center_momentum)

    def tensors(self) -> Tensors:
        """See :class:`pretrain.objective.Objective`."""
        assert self._teacher is not None
        return {"center": self._center, **self._teacher.tensors()}
