"""nmtune-released and lp-released: the setting of the code that the authors released, not the paper's.

Source: github.com/Hhhhhhao/Noisy-Model-Learning: the commands of README.md at 7547d66, and src/args.py,
src/models/modeling.py, nml_tune.py and finetune.py at e9c5fb1. nml_tune.py trains on two augmented views a
sample; a head that sees features has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plugins.gradient_head import GradientHead
from plugins.head import at_least
from plugins.losses import consistency, covariance, dominant_share, products
from plugins.lp import LinearProbe
from plugins.schedule import Schedule
from plugins.trainable import Batch

_TUNED: Mapping[str, Schedule] = {"vision": Schedule(), "text": Schedule(epochs=10, decay="linear")}
# Both linear probes of the README: lr 0.01, weight decay 0.0001, 30 epochs. It names none for text.
_LINEAR: Mapping[str, Schedule] = {
    "vision": Schedule(lr=0.01),
    "text": Schedule(epochs=10, lr=0.01, decay="linear"),
}


def released_classifier(in_features: int, num_classes: int) -> nn.Linear:
    """Return a classifier with the authors' first weights: Kaiming's uniform ones and biases of 0."""
    classifier = nn.Linear(in_features, num_classes)
    nn.init.kaiming_uniform_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


@dataclass(kw_only=True, eq=False)
class LinearProbeReleased(LinearProbe):
    """Linear probing with the authors' command: AdamW, lr 0.01, weight decay 0.0001."""

    schedules: ClassVar[Mapping[str, Schedule]] = _LINEAR

    def build_classifier(self, in_features: int, num_classes: int) -> nn.Module:
        """Return it with the authors' first weights."""
        return released_classifier(in_features, num_classes)


class ScaledResidual(nn.Module):
    """F -> F + s * body(F), with a learnt s a feature."""

    def __init__(self, body: nn.Module, width: int, scale: float) -> None:
        super().__init__()
        self.body = body
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features [M, D], corrected."""
        result: Tensor = features + self.scale * self.body(features)
        return result

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of the same."""
        part = graph.add("Mul", graph.constant(self.scale), graph.apply(self.body, name))
        corrected: str = graph.add("Add", name, part)
        return corrected


@dataclass(kw_only=True, eq=False)
class NMTuneReleased(GradientHead):
    """Hidden width 4 D with BatchNorm, a scaled residual, and weights 1, 0.04 and 0.001.

    Attributes:
        hidden_ratio: Hidden width over D.
        residual: Whether the features are added to what the MLP makes of them.
        residual_scale: First value of the scale of the MLP's part.
        mse_weight: Weight of Eq. 3, here averaged over the elements.
        cov_weight: Weight of Eq. 4.
        svd_weight: Weight of Eq. 5, here the mean share of the ``k`` largest singular values.
        k: How many singular values Eq. 5 keeps dominant.
    """

    hidden_ratio: int = 4
    residual: bool = True
    residual_scale: float = 1.0
    mse_weight: float = 1.0
    cov_weight: float = 0.04
    svd_weight: float = 0.001
    k: int = 5

    schedules: ClassVar[Mapping[str, Schedule]] = _TUNED

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "hidden_ratio", "k")
        at_least(self, 0, "mse_weight", "cov_weight", "svd_weight")

    def build_transform(self, in_features: int) -> nn.Module:
        """Return Linear, BatchNorm, ReLU, Linear, inside the residual."""
        hidden = self.hidden_ratio * in_features
        body = nn.Sequential(
            nn.Linear(in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, in_features)
        )
        return ScaledResidual(body, in_features, self.residual_scale) if self.residual else body

    def build_classifier(self, in_features: int, num_classes: int) -> nn.Module:
        """Return it with the authors' first weights."""
        return released_classifier(in_features, num_classes)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the three weighted terms."""
        of = products(batch.transformed, batch.features, spectrum=True)
        return super().terms(batch) | {
            "mse": self.mse_weight * consistency(of, reduction="element"),
            "cov": self.cov_weight * covariance(of),
            "svd": self.svd_weight * dominant_share(of, k=self.k) / self.k,
        }
