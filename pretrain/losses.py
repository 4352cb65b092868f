"""Losses for labels, and pairs, that may be wrong: what a sample costs by the likelihood of its label.

Each is a function of log p alone, the log-softmax of the label that is given. classify takes the softmax over
the classes, clip over the captions (and over the images) of the global batch, of which InfoNCE is the
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from nml.recipe import Loss

OPTIONS = ("gce_q", "sce_alpha", "sce_beta", "sce_zero")
"""Fields of ``recipe.loss`` that are read here."""
Cost = Callable[[torch.Tensor], torch.Tensor]


def generalised_cross_entropy(likelihood: torch.Tensor, q: float) -> torch.Tensor:
    """Return (1 - p^q) / q, elementwise.

    Its gradient is that of cross-entropy times p^q, so that what contradicts the model counts for less.

    Source: Z. Zhang and M. Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with
    Noisy Labels (NeurIPS 2018), L_q without the truncation.

    Args:
        likelihood: log p, of any shape.
        q: Above 0 to 1: near 0 cross-entropy, 1 the mean absolute error.
    """
    # By the logarithm, whose gradient stays finite where p is 0; that of p^q does not.
    return -torch.expm1(q * likelihood) / q


def symmetric_cross_entropy(likelihood: torch.Tensor, alpha: float, beta: float, zero: float) -> torch.Tensor:
    """Return -alpha log p - beta A (1 - p), elementwise.

    The second part is cross-entropy the other way round, -sum_k p_k log t_k, for a label t that is one-hot.

    Source: Y. Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels (ICCV 2019).

    Args:
        likelihood: log p, of any shape.
        alpha: Weight of cross-entropy.
        beta: Weight of reverse cross-entropy.
        zero: A, below 0: what stands for the logarithm of 0.
    """
    return -alpha * likelihood + beta * zero * torch.expm1(likelihood)


def cost_of(loss: Loss) -> Cost | None:
    """Return the loss of a recipe as a function of log p; None of one that is no such function's mean."""
    if loss.name == "gce":
        return partial(generalised_cross_entropy, q=loss.gce_q)
    if loss.name == "sce":
        return partial(symmetric_cross_entropy, alpha=loss.sce_alpha, beta=loss.sce_beta, zero=loss.sce_zero)
    return None


class MeanCost(nn.Module):
    """The mean over samples of what their labels cost.

    Args:
        cost: What a label costs by its log p.
    """

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self._cost = cost

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            scores: [n, K].
            targets: The labels, int64 [n]; or the shares of each class, [n, K], of samples mixed from
                several: their labels' costs are mixed as they are (Zhang et al. 2018, mixup).
        """
        likelihood = functional.log_softmax(scores, dim=1)
        if targets.is_floating_point():
            return (targets * self._cost(likelihood)).sum(1).mean()
        return self._cost(likelihood.gather(1, targets.unsqueeze(1))).mean()
