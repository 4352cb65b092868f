"""What the trainer trains: a module of two parts, and a head that builds it and names its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from plugins.schedule import Schedule


class Batch(NamedTuple):
    """What a loss term may look at.

    Attributes:
        features: F, float32 [M, D], divided by the head's scale.
        transformed: Z, [M, H].
        logits: Class scores, [M, K].
        labels: int64 [M].
        samples: Which training samples these are, their rows in the training set, int64 [M].
        epoch: Epochs done before this step, a fraction, float32 [].
        memory: What this fit remembers, by name, as :meth:`Trainable.build_memory` began it; a term may
            change it in place.
    """

    features: Tensor
    transformed: Tensor
    logits: Tensor
    labels: Tensor
    samples: Tensor | None = None
    epoch: Tensor | None = None
    memory: Mapping[str, Tensor] = MappingProxyType({})


class HeadModule(nn.Module):
    """Features F [M, D] -> F / scale -> transformed features Z [M, H] -> class scores [M, K]."""

    in_features: Tensor
    scale: Tensor

    def __init__(self, transform: nn.Module, classifier: nn.Module, in_features: int) -> None:
        super().__init__()
        self.transform = transform
        self.classifier = classifier
        # In the state, so that a saved head says what it was trained on.
        self.register_buffer("in_features", torch.tensor(in_features))
        # What features are divided by, see ``plugins.scale``; 1 leaves every bit of them as it is.
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return F / scale, Z and the class scores."""
        scaled = features / self.scale
        transformed = self.transform(scaled)
        return scaled, transformed, self.classifier(transformed)

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes that give the class scores to a :class:`plugins.onnx_graph.Graph`."""
        scaled = graph.add("Div", name, graph.constant(self.scale))
        return graph.apply(self.classifier, graph.apply(self.transform, scaled))


class Trainable(Protocol):
    """What the trainer asks of a head; :class:`plugins.gradient_head.GradientHead` says what each is."""

    @property
    def stackable(self) -> bool:
        """Whether copies may be trained in one pass."""

    @property
    def rescale(self) -> bool:
        """Whether features are divided by a scale fitted on them."""

    def schedule(self) -> Schedule:
        """Return the schedule in force."""

    def build(self, in_features: int, num_classes: int, *, seed: int = 0) -> HeadModule:
        """Return the untrained module."""

    def prepare(
        self, copies: Sequence[Any], features: Tensor, labels: Tensor, *, num_classes: int, device: str
    ) -> None:
        """Find out what copies of one kind need before they are trained."""

    def build_memory(self, samples: int, num_classes: int) -> dict[str, Tensor]:
        """Return what a fit on so many training samples remembers from step to step, before the first."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum is minimised."""

    def adopt(self, module: HeadModule) -> None:
        """Take over a trained module."""
