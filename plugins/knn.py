"""knn: the votes of the nearest training samples, weighted by cosine similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from plugins.head import at_least, check_data, check_types

# Similarities that are held at once.
AT_ONCE = 1 << 24
# The least that classes are scored as together: a class without votes may be right all the same.
NO_VOTES = 0.01
# What normalising divides by at least.
SHORTEST = 1e-12


class _Votes(nn.Module):
    """Features [N, D] -> the logarithm of each class's share of the votes [N, K]."""

    samples: Tensor
    labels: Tensor

    def __init__(self, state: Mapping[str, Tensor], k: int, temperature: float) -> None:
        super().__init__()
        self.register_buffer("samples", state["samples"])
        self.register_buffer("labels", state["labels"])
        self.classes = int(state["num_classes"])
        self.k, self.temperature = min(k, len(state["samples"])), temperature

    def forward(self, features: Tensor) -> Tensor:
        """Let the nearest samples vote."""
        nearest = (functional.normalize(features, dim=1, eps=SHORTEST) @ self.samples.T).topk(self.k, dim=1)
        weights = torch.softmax(nearest.values / self.temperature, dim=1).cpu()
        # On the CPU, where the votes of a class are added in one order.
        shares = weights.new_zeros(features.shape[0], self.classes)
        shares = shares.scatter_add(1, self.labels[nearest.indices].cpu(), weights)
        return shares.clamp(min=NO_VOTES / self.classes).log()

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of the same."""
        length = graph.add("ReduceL2", name, axes=[1], keepdims=1)
        unit = graph.add("Div", name, graph.add("Max", length, graph.constant(SHORTEST)))
        cosines = graph.add("MatMul", unit, graph.constant(self.samples.T))
        number = graph.constant(np.array([self.k]))
        values, nearest = graph.add("TopK", cosines, number, outputs=2, axis=1)
        scaled = graph.add("Div", values, graph.constant(self.temperature))
        weights = graph.add("Softmax", scaled, axis=1)
        voted = graph.add("Gather", graph.constant(self.labels), nearest)
        count = graph.add("Shape", name, start=0, end=1)
        shape = graph.add("Concat", count, graph.constant(np.array([self.classes])), axis=0)
        shares = graph.add("ConstantOfShape", shape)
        shares = graph.add("ScatterElements", shares, voted, weights, axis=1, reduction="add")
        least = graph.constant(NO_VOTES / self.classes)
        found: str = graph.add("Log", graph.add("Max", shares, least))
        return found


@dataclass(kw_only=True, eq=False)
class NearestNeighbours:
    """Weighted k-nearest-neighbour classification; nothing is trained.

    Source: Z. Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination (CVPR
    2018), section 3.4; k = 20 and temperature 0.07 as M. Caron et al., DINO (ICCV 2021).

    Attributes:
        k: Neighbours that vote; smaller training sets vote whole.
        temperature: A vote weighs exp(cosine / temperature).
    """

    k: int = 20
    temperature: float = 0.07

    uses_validation: ClassVar[bool] = False

    _state: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "k")
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature}", possible="above 0")

    def sweep(self) -> list[dict[str, Any]]:
        """Return other numbers of neighbours."""
        return [{"k": k} for k in (5, 50, 200)]

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,  # noqa: ARG002 - nothing is drawn
        device: str = "cpu",
    ) -> Self:
        """Keep the training samples; see :meth:`plugins.head.Head.fit`."""
        num_classes = check_data(features, labels, validation, num_classes)
        self._state = {
            "samples": functional.normalize(features.detach().to(device, torch.float32), dim=1),
            "labels": labels.to(device, copy=True),
            "num_classes": torch.tensor(num_classes),
        }
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as they are, float32 on the CPU."""
        self._fitted()
        return features.detach().cpu().float()

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return the logarithm of each class's share of the votes [N, K]; a share is 0.01 / K at least."""
        votes = self.inference_module()
        state = self._fitted()
        samples = state["samples"]
        logits = torch.empty(len(features), int(state["num_classes"]))
        rows = max(1, AT_ONCE // len(samples))
        for part, of_part in zip(features.detach().split(rows), logits.split(rows), strict=True):
            of_part.copy_(votes(part.to(samples)))
        return logits

    def inference_module(self) -> nn.Module:
        """Return the votes of the samples for float32 features [N, D], as a module."""
        return _Votes(self._fitted(), self.k, self.temperature)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the training samples, normalised, and their labels."""
        return {name: value.cpu().clone() for name, value in self._fitted().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take another head's training samples."""
        state = dict(state)
        # Heads saved earlier hold a row of votes a sample.
        if (votes := state.pop("votes", None)) is not None:
            state |= {"labels": votes.argmax(dim=1), "num_classes": torch.tensor(votes.shape[1])}
        self._state = {name: value.clone() for name, value in state.items()}

    def _fitted(self) -> dict[str, Tensor]:
        if self._state is None:
            raise UserError("NearestNeighbours is not fitted", mend="call fit or load_state_dict first")
        return self._state
