"""gce: generalised cross-entropy, which gives samples that the head contradicts less weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from plugins.head import share
from plugins.mlp import MLP
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class GeneralisedCrossEntropy(MLP):
    """L = mean of (1 - p_y^q) / q, on the MLP of nmtune; p_y is the softmax of the given label.

    Source: Z. Zhang and M. Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with
    Noisy Labels (NeurIPS 2018), their L_q with q = 0.7; without the truncation.

    Attributes:
        q: Above 0 to 1: near 0 cross-entropy, 1 the mean absolute error.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "q")

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return generalised cross-entropy in the place of cross-entropy."""
        return {"gce": generalised_cross_entropy(batch.logits, batch.labels, self.q)}


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """Return the mean of (1 - p_y^q) / q over scores [M, K] and labels int64 [M]."""
    # From the logarithm, whose gradient p^q stays finite where p is 0; that of p^q itself does not.
    likelihood = functional.log_softmax(logits.float(), dim=1).gather(1, labels.unsqueeze(1))
    return ((1 - (q * likelihood).exp()) / q).mean()
