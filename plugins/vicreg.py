"""vicreg: the variance, invariance and covariance terms of VICReg, between F and Z."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from plugins.head import at_least
from plugins.losses import covariance, products
from plugins.mlp import MLP
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class VICReg(MLP):
    """Cross-entropy + weight * (25 invariance + 25 variance + covariance), on the MLP of nmtune.

    Source: A. Bardes et al., VICReg (ICLR 2022), section 4: their weights, with the frozen features in the
    place of the second view.

    Attributes:
        weight: The weight of the whole regulariser.
        invariance: Weight of the mean squared difference of Z and F.
        variance: Weight of the hinge that keeps each feature's standard deviation above 1.
        covariance: Weight of the squared off-diagonal covariance over D.
    """

    weight: float = 0.01
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "weight", "invariance", "variance", "covariance")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the three weighted terms."""
        z = batch.transformed.float()
        # A single sample has no variance to hold up.
        spread = (z.var(dim=0, correction=min(1, len(z) - 1)) + 1e-4).sqrt()
        return super().terms(batch) | {
            "invariance": self.weight * self.invariance * functional.mse_loss(z, batch.features),
            "variance": self.weight * self.variance * torch.relu(1 - spread).mean(),
            "covariance": self.weight * self.covariance * covariance(products(batch.transformed)),
        }
