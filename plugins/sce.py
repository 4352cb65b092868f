"""sce: symmetric cross-entropy, whose reverse term a wrong label can raise only so far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins.head import at_least
from plugins.mlp import MLP
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class SymmetricCrossEntropy(MLP):
    """L = alpha CE + beta RCE, RCE = -A mean of (1 - p_y), on the MLP of nmtune.

    RCE is -sum_k p_k log q_k with q the one-hot label, log 0 set to A.
    Source: Y. Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels (ICCV 2019); alpha
    0.1, beta 1 and A = -4, theirs for CIFAR-10.

    Attributes:
        alpha: Weight of cross-entropy.
        beta: Weight of reverse cross-entropy.
        zero: A, below 0: what stands for the logarithm of 0.
    """

    alpha: float = 0.1
    beta: float = 1.0
    zero: float = -4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "alpha", "beta")
        if not self.zero < 0:
            # Above 0 the reverse term would reward wrong answers.
            raise UserError(f"zero {self.zero}", possible="below 0")
        if not self.alpha + self.beta:
            raise UserError("alpha 0 and beta 0: nothing is learnt", possible="one of them above 0")

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return both, weighted."""
        likelihood = functional.log_softmax(batch.logits.float(), dim=1).gather(1, batch.labels.unsqueeze(1))
        return {
            "cross_entropy": -self.alpha * likelihood.mean(),
            "reverse": -self.beta * self.zero * (1 - likelihood.exp()).mean(),
        }
