"""nmtune-released: the setting of the code that the authors released, which differs from the paper.

Source: github.com/Hhhhhhao/Noisy-Model-Learning, src/args.py, src/models/modeling.py and nml_tune.py at
e9c5fb1. It trains on two augmented views a sample; a head that sees features has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plugins.gradient_head import GradientHead
from plugins.hyper_parameters import at_least
from plugins.losses import consistency, covariance, dominant_share, products
from plugins.trainable import Batch


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
    residual_scale: float = 0.5
    mse_weight: float = 1.0
    cov_weight: float = 0.04
    svd_weight: float = 0.001
    k: int = 5

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

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the three weighted terms."""
        of = products(batch.transformed, batch.features, spectrum=True)
        return super().terms(batch) | {
            "mse": self.mse_weight * consistency(of, reduction="element"),
            "cov": self.cov_weight * covariance(of),
            "svd": self.svd_weight * dominant_share(of, k=self.k) / self.k,
        }
