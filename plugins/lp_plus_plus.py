"""lp++: a linear probe whose weights are blended with the text embeddings of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from plugins.head import at_least, check_data, check_types

# What normalising divides by at least.
SHORTEST = 1e-12


class _Blended(nn.Module):
    """Features [N, D] -> f (w_k + alpha_k t_k), f the features as unit vectors, [N, K]."""

    weight: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        blended = state["prototypes"] + state["multipliers"].unsqueeze(1) * state["texts"]
        self.register_buffer("weight", blended)

    def forward(self, features: Tensor) -> Tensor:
        """Return class scores."""
        return functional.normalize(features, dim=1, eps=SHORTEST) @ self.weight.T

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of the same."""
        length = graph.add("ReduceL2", name, axes=[1], keepdims=1)
        unit = graph.add("Div", name, graph.add("Max", length, graph.constant(SHORTEST)))
        found: str = graph.add("MatMul", unit, graph.constant(self.weight.T))
        return found


@dataclass(kw_only=True, eq=False)
class LPPlusPlus:
    """Scores f (w_k + alpha_k t_k) of unit vectors f; t_k is the text embedding of class k.

    Source: Y. Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (CVPR 2024, arXiv
    2404.02285), with the values of the authors' code. Cross-entropy of all samples is minimised in two
    blocks: the prototypes w, from the means of the classes on, with momentum 0.9 and step 4 N /
    lambda_max(F^T F); the multipliers alpha after every ``text_every`` of these, with step N / (4 max_k sum_i
    (f_i t_k)^2), from one value
    on: ``text_start`` times the mean over classes of the mean f t_k of their samples. Otherwise than in that
    code there is no bias, as in the paper; a step of alpha takes the gradient of its moment, where theirs
    adds up those of all steps before; and the last step counts, not the best of a validation set.

    Attributes:
        iterations: Steps of the prototypes.
        text_every: Steps of the prototypes before one of the multipliers.
        text_start: What the first multiplier is a multiple of.
        momentum: Of the prototypes' steps.
    """

    iterations: int = 300
    text_every: int = 10
    text_start: float = 250.0
    momentum: float = 0.9

    uses_validation: ClassVar[bool] = False
    uses_class_embeddings: ClassVar[bool] = True

    _state: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "iterations", "text_every")
        at_least(self, 0, "text_start", "momentum")
        if self.momentum >= 1:
            raise UserError(f"momentum {self.momentum}", possible="0 to below 1")

    @property
    def outcome(self) -> dict[str, Any]:
        """The mean of the multipliers: how much the texts say."""
        return {"mean_multiplier": round(float(self._fitted()["multipliers"].mean()), 4)}

    def sweep(self) -> list[dict[str, Any]]:
        """Return other first multipliers."""
        return [{"text_start": factor * self.text_start} for factor in (0.1, 0.3, 0.01)]

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,  # noqa: ARG002 - nothing is drawn
        device: str = "cpu",
        class_embeddings: Tensor | None = None,
    ) -> Self:
        """Minimise cross-entropy; see :meth:`plugins.head.Head.fit`."""
        num_classes = check_data(features, labels, validation, num_classes)
        expected = [num_classes, features.shape[1]]
        if class_embeddings is None or list(class_embeddings.shape) != expected:
            shown = None if class_embeddings is None else list(class_embeddings.shape)
            raise UserError(f"class_embeddings {shown}", possible=f"{expected}, one a class")
        rows = functional.normalize(features.detach().to(device, torch.float32), dim=1, eps=SHORTEST)
        texts = functional.normalize(class_embeddings.detach().to(device, torch.float32), dim=1, eps=SHORTEST)
        classes = labels.to(device)
        similar = rows @ texts.T
        members = functional.one_hot(classes, num_classes).float()
        counts = members.sum(dim=0)
        prototypes = members.T @ rows / counts.clamp_min(1).unsqueeze(1)
        own = (members * similar).sum(dim=0) / counts.clamp_min(1)
        first = self.text_start * own[counts > 0].mean()
        multipliers = first.repeat(num_classes)
        count = len(rows)
        step = 4 * count / torch.linalg.matrix_norm(rows, 2).square().clamp_min(SHORTEST)
        text_step = count / (4 * similar.square().sum(dim=0).max().clamp_min(SHORTEST))
        velocity = torch.zeros_like(prototypes)
        for number in range(1, self.iterations + 1):
            gradient = self._residual(rows, prototypes, multipliers, similar, members).T @ rows / count
            velocity = self.momentum * velocity + gradient
            prototypes = prototypes - step * velocity
            if number % self.text_every == 0:
                residual = self._residual(rows, prototypes, multipliers, similar, members)
                multipliers = multipliers - text_step * (residual * similar).sum(dim=0) / count
        state = {"prototypes": prototypes, "multipliers": multipliers, "texts": texts}
        self._state = {name: value.cpu() for name, value in state.items()}
        return self

    @staticmethod
    def _residual(
        rows: Tensor, prototypes: Tensor, multipliers: Tensor, similar: Tensor, members: Tensor
    ) -> Tensor:
        """Return by how much each probability is too large, [N, K]."""
        return torch.softmax(rows @ prototypes.T + multipliers * similar, dim=1) - members

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as they are, float32 on the CPU."""
        self._fitted()
        return features.detach().cpu().float()

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return class scores [N, K]."""
        scores: Tensor = self.inference_module()(self.transform(features))
        return scores

    def inference_module(self) -> nn.Module:
        """Return the fitted function of float32 features [N, D], as a module."""
        return _Blended(self._fitted())

    def state_dict(self) -> dict[str, Tensor]:
        """Return prototypes, multipliers, and the text embeddings."""
        return {name: value.clone() for name, value in self._fitted().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take another head's."""
        self._state = {name: value.clone() for name, value in state.items()}

    def _fitted(self) -> dict[str, Tensor]:
        if self._state is None:
            raise UserError("LPPlusPlus is not fitted", mend="call fit or load_state_dict first")
        return self._state
