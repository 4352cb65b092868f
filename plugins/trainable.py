"""What the trainer trains: a module of two parts, and a head that builds it and names its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nml.labels import Target
from plugins.schedule import Schedule

# Rows that are brought to float64 at once.
ROWS = 8192
# A variance below this share of the mean square is rounding of float32 features.
ROUNDING = 1e-12


class Batch(NamedTuple):
    """What a loss term may look at.

    Attributes:
        features: F, float32 [M, D], divided by the head's scale.
        transformed: Z, [M, H].
        logits: Class scores, [M, K].
        labels: Classes, int64 [M]; of several a sample bool [M, K]; or numbers, float32 [M], with the mean
            and deviation of the training samples taken out.
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
        # What features are divided by, see :func:`feature_scales`; 1 leaves every bit of them as it is.
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

    def predict_in(self, offset: float, unit: float) -> None:
        """Take numbers from units of their deviation to what they were: scores become unit x scores + offset.

        Raises:
            TypeError: If the classifier is no linear layer.
        """
        if not isinstance(self.classifier, nn.Linear) or self.classifier.bias is None:
            raise TypeError(f"a head of numbers ends in a linear layer, not {type(self.classifier).__name__}")
        with torch.no_grad():
            self.classifier.weight.mul_(unit)
            self.classifier.bias.mul_(unit).add_(offset)


class Trainable(Protocol):
    """What the trainer asks of a head; :class:`plugins.gradient_head.GradientHead` says what each is."""

    @property
    def stackable(self) -> bool:
        """Whether copies may be trained in one pass."""

    @property
    def targets(self) -> frozenset[Target]:
        """Which labels the head takes."""

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


def feature_scales(features: Tensor, parts: Sequence[Tensor | None]) -> list[float]:
    """Return, for each part, the number that its features are to be divided by, kept with the head.

    Learning rates, weight decay, first weights and L_COV have the unit of the features in them, which
    encoders do not agree on: what an API returns are unit vectors, 1 / sqrt(D) a feature; what a ResNet pools
    is around 1.

    It is the root of the mean variance of the features, so that a mean that all samples share does not count.
    Where the samples are all the same it is their root mean square, and 1 where that is 0.

    Args:
        features: [N, D], any floating dtype.
        parts: The rows of each part, int64 [n]; None is all of them.
    """
    sizes = torch.cat([_mean_squares(rows) for rows in features.split(ROWS)])
    found: dict[int, float] = {}
    for part in parts:
        # Copies of one pass mostly share their rows, as one object.
        if id(part) not in found:
            found[id(part)] = _scale(features, sizes, part)
    return [found[id(part)] for part in parts]


def _scale(features: Tensor, sizes: Tensor, part: Tensor | None) -> float:
    if part is None:
        pieces, square = features.split(ROWS), float(sizes.mean())
    else:
        part = part.to(features.device)
        pieces, square = tuple(features[rows] for rows in part.split(ROWS)), float(sizes[part].mean())
    count = sum(len(piece) for piece in pieces)
    mean = torch.stack([piece.double().sum(dim=0) for piece in pieces]).sum(dim=0) / count
    variance = square - float(mean.square().mean())
    return (variance if variance > ROUNDING * square else square) ** 0.5 or 1.0


def _mean_squares(rows: Tensor) -> Tensor:
    return rows.double().square().mean(dim=1)
