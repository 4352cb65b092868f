"""nmtune: an MLP whose features stay near the encoder's, decorrelate, and keep a dominant direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nml.labels import TARGETS, Target
from plugins.head import at_least
from plugins.losses import Products, Reduction, consistency, covariance, dominant_share, products
from plugins.mlp import MLP
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class NMTune(MLP):
    """Eq. 6 of arXiv 2309.17002: L = L_CE + lambda (L_MSE + L_COV + L_SVD), lambda 0.01.

    Attributes:
        weight: lambda.
        reduction: How Eq. 3 becomes one number, see :func:`plugins.losses.consistency`.
    """

    weight: float = 0.01
    reduction: Reduction = "sample"

    targets: ClassVar[frozenset[Target]] = TARGETS
    # Which of Eq. 3 to 5 take part; the ablations leave some out.
    regularisers: ClassVar[frozenset[str]] = frozenset({"mse", "cov", "svd"})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "weight")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the labels' term, cross-entropy of classes, and the weighted terms of Eq. 3 to 5."""
        terms = super().terms(batch)
        features = batch.features if "mse" in self.regularisers else None
        of = products(batch.transformed, features, spectrum="svd" in self.regularisers)
        if "mse" in self.regularisers:
            terms["mse"] = self.weight * consistency(of, reduction=self.reduction)
        if "cov" in self.regularisers:
            terms["cov"] = self.weight * covariance(of)
        if "svd" in self.regularisers:
            terms["svd"] = self.weight * self.spectral_term(of)
        return terms

    def spectral_term(self, of: Products) -> Tensor:
        """Return the unweighted L_SVD of Eq. 5."""
        return dominant_share(of)
