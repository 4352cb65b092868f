"""What objectives over images alone share: a projector, several views, neighbours to judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from nml.objectives import Takes
from nml.recipe_checks import positive
from pretrain.engines import Engine
from pretrain.loading import Batch
from pretrain.models import build_network
from pretrain.objective import Objective


class Projected(nn.Module):
    """An encoder and what is trained on top of its features.

    Args:
        encoder: From images to features [n, D].
        projector: From those to what the loss sees [n, d].
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``features`` and what was ``projected`` of them."""
        features = self.encoder(images)
        return {"features": features, "projected": self.projector(features)}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that timm's encoder wants spared."""
        spared: Any = getattr(self.encoder, "no_weight_decay", set)
        return {f"encoder.{name}" for name in spared()}


@dataclass(frozen=True, kw_only=True)
class ProjectorOptions:
    """Of an objective with a projector: Linear, ReLU, Linear.

    Attributes:
        hidden: Its hidden values.
        dim: Values of what it gives.
        projector_norm: Whether it normalises its hidden values by batch.
    """

    hidden: int = 512
    dim: int = 128
    projector_norm: bool = True

    def __post_init__(self) -> None:
        positive("recipe.options", self, "hidden", "dim")


class Embedding(Objective):
    """The base of objectives that train an encoder by what a projector makes of its features.

    A subclass has a loss, in ``backward``; :meth:`projector` and :meth:`network` may be its own.

    Attributes:
        takes: Any set: it looks at images alone.
        views: Two of each sample.
        encoder: What the encoder's tensors begin with.
        judged_by: The neighbours of its features.
        Options: Those of the projector.
    """

    takes: ClassVar[Takes] = "any"
    views: ClassVar[int] = 2
    encoder: ClassVar[str] = "encoder."
    judged_by: ClassVar[Literal["scores", "neighbours"]] = "neighbours"
    Options: ClassVar[type[Any]] = ProjectorOptions

    def network(self) -> nn.Module:
        """See :class:`pretrain.objective.Objective`."""
        encoder: Any = build_network(self.architecture, self.setting.seed)
        return Projected(encoder, self.projector(int(encoder.head_hidden_size)))

    def projector(self, features: int) -> nn.Module:
        """Return what is on top of ``features`` values of the encoder; its weights are drawn after those."""
        hidden, norm = self.options.hidden, self.options.projector_norm
        layers = [
            nn.Linear(features, hidden, bias=not norm),
            *([nn.BatchNorm1d(hidden)] if norm else []),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, self.options.dim),
        ]
        return nn.Sequential(*layers)

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """See :class:`pretrain.objective.Objective`: the encoder's features."""

        def features(images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = engine.forward(images)["features"]
            return found.float()

        return features


def views_of(batch: Batch) -> torch.Tensor:
    """Return the images of a batch by view, [views, n, 3, H, W]."""
    number = len(batch.targets)
    return batch.images.unflatten(0, (-1, number))
