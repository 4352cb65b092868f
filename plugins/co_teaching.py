"""co-teaching: two networks, each of which learns from the samples that the other finds easiest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from plugins.head import at_least
from plugins.mlp import MLP
from plugins.trainable import Batch


class Pair(nn.Module):
    """Two modules on one input [M, I], or on its halves; their results [M, O] side by side, [M, 2 O]."""

    def __init__(self, first: nn.Module, second: nn.Module, *, halves: bool) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.halves = halves

    def forward(self, rows: Tensor) -> Tensor:
        """Return both results side by side."""
        left, right = rows.chunk(2, dim=1) if self.halves else (rows, rows)
        return torch.cat([self.first(left), self.second(right)], dim=1)

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of the same to a :class:`plugins.onnx_graph.Graph`."""
        found: str = graph.add("Concat", *self.parts_to_onnx(graph, name), axis=1)
        return found

    def parts_to_onnx(self, graph: Any, name: str) -> list[str]:
        """Add the nodes of both results; return their names."""
        left, right = graph.add("Split", name, outputs=2, axis=1) if self.halves else (name, name)
        return [graph.apply(self.first, left), graph.apply(self.second, right)]


class PairOfClassifiers(Pair):
    """Two classifiers: in training their scores side by side [M, 2 K], afterwards common ones [M, K]."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the scores; once trained, the logarithm of the mean of both probabilities."""
        scores = super().forward(rows)
        if self.training:
            return scores
        both = [functional.log_softmax(part, dim=1) for part in scores.chunk(2, dim=1)]
        return torch.logaddexp(*both) - torch.log(torch.tensor(2.0))

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of what a trained pair returns."""
        first, second = (graph.add("LogSoftmax", part, axis=1) for part in self.parts_to_onnx(graph, name))
        distance = graph.add("Abs", graph.add("Sub", first, second))
        # log(a + b) = max + log(1 + exp(-distance)), of which the mean is log 2 less.
        ratio = graph.add("Add", graph.add("Exp", graph.add("Neg", distance)), graph.constant(1.0))
        more = graph.add("Log", graph.add("Mul", ratio, graph.constant(0.5)))
        found: str = graph.add("Add", graph.add("Max", first, second), more)
        return found


@dataclass(kw_only=True, eq=False)
class CoTeaching(MLP):
    """Two MLPs as nmtune's; each learns from those samples of a batch that have the lowest loss in the other.

    Of the batch the share 1 - noise_ratio * min(epoch / ramp, 1) is taken. Z are those of both, side by side.
    Source: B. Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels
    (NeurIPS 2018), Algorithm 1; ramp (T_k) 10, theirs.

    Attributes:
        noise_ratio: tau, the share of labels taken for wrong, 0 to below 1.
        ramp: T_k, epochs until that share is left out.
    """

    noise_ratio: float = 0.2
    ramp: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "noise_ratio", "ramp")
        if not self.noise_ratio < 1:
            raise UserError(f"noise_ratio {self.noise_ratio}", possible="0 to below 1")

    def build_transform(self, in_features: int) -> nn.Module:
        """Return both MLPs."""
        return Pair(super().build_transform(in_features), super().build_transform(in_features), halves=False)

    def build_classifier(self, in_features: int, num_classes: int) -> nn.Module:
        """Return both classifiers; ``in_features`` counts both Z."""
        width = in_features // 2
        return PairOfClassifiers(nn.Linear(width, num_classes), nn.Linear(width, num_classes), halves=True)

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each network on what the other chose."""
        losses = [
            functional.cross_entropy(scores, batch.labels, reduction="none")
            for scores in batch.logits.float().chunk(2, dim=1)
        ]
        progress = torch.ones(()) if batch.epoch is None else batch.epoch / max(self.ramp, 1e-9)
        kept = torch.round((1 - self.noise_ratio * progress.clamp(max=1)) * len(batch.labels)).clamp_min(1)
        # Place 0 is the lowest; as a mask, since each copy may keep another number.
        chosen = [(loss.detach().argsort().argsort() < kept).float() for loss in losses]
        return {
            "first": (losses[0] * chosen[1]).sum() / kept,
            "second": (losses[1] * chosen[0]).sum() / kept,
        }
