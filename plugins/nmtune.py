"""nmtune: an MLP whose features stay near the encoder's, decorrelate, and keep a dominant direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nml.errors import UserError
from plugins.gradient_head import Batch
from plugins.losses import Reduction, consistency, covariance, dominant_share, products
from plugins.mlp import MLP


@dataclass(kw_only=True, eq=False)
class NMTune(MLP):
    """Eq. 6 of arXiv 2309.17002: L = L_CE + lambda (L_MSE + L_COV + L_SVD), lambda 0.01.

    Attributes:
        weight: lambda.
        reduction: How Eq. 3 becomes one number, see :func:`plugins.losses.consistency`.
    """

    weight: float = 0.01
    reduction: Reduction = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight >= 0:
            raise UserError(f"weight {self.weight}", possible="0 or more")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the three weighted terms of Eq. 3 to 5."""
        of = products(batch.transformed)
        consistent = consistency(batch.features, batch.transformed, reduction=self.reduction)
        return super().terms(batch) | {
            "consistency": self.weight * consistent,
            "covariance": self.weight * covariance(of),
            "dominant_share": self.weight * dominant_share(of),
        }
