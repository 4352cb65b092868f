"""nmtune-cosine and nmtune-kl: NMTune whose Z is held to F by another measure than Eq. 3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins.losses import covariance, dominant_share, products
from plugins.nmtune import NMTune
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class CosineConsistency(NMTune):
    """L_MSE becomes the mean of 1 - cos(f_i, z_i): half of Eq. 3 under the reduction ``sample``."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the weighted terms."""
        cosine = functional.cosine_similarity(batch.features, batch.transformed.float(), dim=1)
        return _terms(self, batch, "cosine", (1 - cosine).mean())


@dataclass(kw_only=True, eq=False)
class KLConsistency(NMTune):
    """L_MSE becomes the mean of KL(softmax(f_i / t) || softmax(z_i / t)) t^2, over the features.

    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2, with features in
    the place of class scores; t^2 keeps the size of the gradient.

    Attributes:
        temperature: t.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature}", possible="above 0")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the weighted terms."""
        f, z = (
            functional.log_softmax(part.float() / self.temperature, dim=1)
            for part in (batch.features, batch.transformed)
        )
        divergence = (f.exp() * (f - z)).sum(dim=1).mean()
        return _terms(self, batch, "kl", divergence * self.temperature**2)


def _terms(head: NMTune, batch: Batch, name: str, consistency: Tensor) -> dict[str, Tensor]:
    of = products(batch.transformed, spectrum=True)
    return head.label_terms(batch) | {
        name: head.weight * consistency,
        "cov": head.weight * covariance(of),
        "svd": head.weight * dominant_share(of),
    }
