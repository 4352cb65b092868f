"""bss: batch spectral shrinkage, which holds the smallest singular values of the batch down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plugins.head import at_least
from plugins.losses import products
from plugins.mlp import MLP
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class BatchSpectralShrinkage(MLP):
    """L = L_CE + weight * (sum of the k smallest squared singular values of Z), on the MLP of nmtune.

    Source: X. Chen et al., Catastrophic Forgetting Meets Negative Transfer (NeurIPS 2019), Eq. 6: weight
    0.001 and k = 1.

    Attributes:
        weight: The weight of the term.
        k: How many singular values are held down.
    """

    weight: float = 1e-3
    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "weight")
        at_least(self, 1, "k")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the weighted shrinkage."""
        smallest = products(batch.transformed, spectrum=True).singular_values[: self.k]
        return super().terms(batch) | {"shrinkage": self.weight * smallest.square().sum().float()}
