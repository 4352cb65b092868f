"""elr: early-learning regularisation, which holds each sample to what the head said of it before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nml.errors import UserError
from plugins.head import at_least
from plugins.mlp import MLP
from plugins.trainable import Batch

# Probabilities are kept so far from 0 and 1, as in the authors' code.
CLIPPED = 1e-4


@dataclass(kw_only=True, eq=False)
class EarlyLearningRegularisation(MLP):
    """L = CE + weight * mean of log(1 - <t_i, p_i>), on the MLP of nmtune.

    t_i <- memory t_i + (1 - memory) p_i is a running mean of sample i's own predictions, without a gradient.
    It is formed before wrong labels are learnt by heart, and then holds the head to it.
    Source: S. Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels (NeurIPS 2020);
    weight (lambda) 3 and memory (beta) 0.7, theirs for CIFAR-10.

    Attributes:
        weight: lambda.
        memory: beta, from 0 to below 1.
    """

    weight: float = 3.0
    memory: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "weight")
        if not 0 <= self.memory < 1:
            raise UserError(f"memory {self.memory}", possible="0 to below 1")

    def build_memory(self, samples: int, num_classes: int) -> dict[str, Tensor]:
        """Return the targets t [N, K], all 0."""
        return {"targets": torch.zeros(samples, num_classes)}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the weighted term."""
        p = torch.softmax(batch.logits.float(), dim=1).clamp(CLIPPED, 1 - CLIPPED)
        held = batch.memory["targets"]
        seen = p.detach()
        targets = self.memory * held[batch.samples] + (1 - self.memory) * seen / seen.sum(dim=1, keepdim=True)
        held[batch.samples] = targets
        agreement = (targets * p).sum(dim=1)
        return super().terms(batch) | {"early_learning": self.weight * torch.log(1 - agreement).mean()}
