"""logreg: scikit-learn's logistic regression with L-BFGS, on standardised features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from plugins.head import Labelled, at_least, check_data, check_types, hold_out

# How far below every class that was seen a class without a training sample scores.
UNSEEN_GAP = 10.0


# Strengths that ``auto`` tries.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)


class _Fitted(nn.Module):
    """Standardised features [N, D] -> class scores [N, K]."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    unseen: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in ("mean", "scale", "weight", "bias", "unseen"):
            self.register_buffer(name, state[name])

    def forward(self, features: Tensor) -> Tensor:
        """Return class scores; a class that training never showed scores below all others."""
        scores = (features - self.mean) / self.scale @ self.weight.T + self.bias
        lowest = scores.masked_fill(self.unseen, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(self.unseen, lowest - UNSEEN_GAP, scores)

    def to_onnx(self, graph: Any, name: str) -> str:
        """Add the nodes of the same."""
        centred = graph.add("Sub", name, graph.constant(self.mean))
        standardised = graph.add("Div", centred, graph.constant(self.scale))
        weight, bias, unseen = map(graph.constant, (self.weight, self.bias, self.unseen))
        scores = graph.add("Gemm", standardised, weight, bias, transB=1)
        masked = graph.add("Where", unseen, graph.constant(torch.inf), scores)
        lowest = graph.add("ReduceMin", masked, axes=[1], keepdims=1)
        below = graph.add("Sub", lowest, graph.constant(UNSEEN_GAP))
        found: str = graph.add("Where", unseen, below, scores)
        return found


@dataclass(kw_only=True, eq=False)
class LogisticRegression:
    """Multinomial logistic regression to convergence; convex, so no seed changes it.

    Attributes:
        c: Inverse strength of the L2 penalty, as scikit-learn counts it; ``auto`` tries ``grid`` and keeps
            what validation data like best, of equals that of the lower cross-entropy. Without validation
            data a fifth of the training samples, drawn by the seed, is held out to choose by, and then
            fitted as well.
        grid: The candidates of ``auto``.
        max_iter: Most iterations of L-BFGS.
        standardise: Whether each feature is brought to mean 0 and deviation 1 on the training samples.
            L-BFGS needs many more iterations without.
    """

    c: float | Literal["auto"] = "auto"
    grid: tuple[float, ...] = STRENGTHS
    max_iter: int = 1000
    standardise: bool = True

    uses_validation: ClassVar[bool] = True

    _state: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        if self.c != "auto" and not self.c > 0:
            raise UserError(f"c {self.c}", possible="auto, or above 0")
        if not self.grid or not min(self.grid) > 0:
            raise UserError(f"grid {self.grid}", possible="one or more numbers, each above 0")
        at_least(self, 1, "max_iter")

    @property
    def converged(self) -> bool:
        """Whether the last fit ended before ``max_iter``."""
        return bool(self._fitted()["converged"])

    @property
    def tries(self) -> int:
        """How many strengths a fit compares."""
        return len(set(self.grid)) if self.c == "auto" else 1

    @property
    def outcome(self) -> dict[str, Any]:
        """The c in force, and whether the last fit converged."""
        chosen = self._fitted().get("c")
        return {"converged": self.converged} | ({} if chosen is None else {"c": float(chosen)})

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        device: str = "cpu",  # noqa: ARG002 - scikit-learn computes on the CPU
    ) -> Self:
        """Fit, once a candidate where c is ``auto``; see :meth:`plugins.head.Head.fit`."""
        num_classes = check_data(features, labels, validation, num_classes)
        rows, classes = features.detach().cpu().double(), labels.cpu()
        if self.c != "auto":
            self._state = self._solved(rows, classes, self.c, num_classes)
            return self
        train, held = Labelled(rows, classes), validation
        if held is None:
            train, held = hold_out(train, seed)
        states: dict[float, dict[str, Tensor]] = {}
        found: dict[float, tuple[int, float]] = {}
        named = held[1].cpu()
        for c in sorted(set(self.grid)):
            self._state = states[c] = self._solved(*train, c, num_classes)
            scores = self.predict_logits(held[0])
            loss = float(functional.cross_entropy(scores, named))
            found[c] = int((scores.argmax(dim=1) == named).sum()), -loss
        best = max(found, key=lambda c: found[c])
        self._state = states[best] if validation else self._solved(rows, classes, best, num_classes)
        return self

    def _solved(self, rows: Tensor, classes: Tensor, c: float, num_classes: int) -> dict[str, Tensor]:
        """Return the state of a fit on rows, float64 [N, D], and classes [N]."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as Solver

        width = rows.shape[1]
        mean = rows.mean(dim=0) if self.standardise else torch.zeros(width, dtype=torch.double)
        deviation = rows.std(dim=0, correction=0) if self.standardise else torch.ones(width)
        scale = torch.where(deviation > 0, deviation, 1.0)
        weight, bias = torch.zeros(num_classes, width), torch.zeros(num_classes)
        seen = classes.unique()
        iterations = 0
        if len(seen) > 1:
            solver = Solver(C=c, max_iter=self.max_iter)
            with warnings.catch_warnings():
                # ``converged`` says it, without a line on the terminal for each fit of a sweep.
                warnings.simplefilter("ignore", ConvergenceWarning)
                solver.fit(((rows - mean) / scale).numpy(), classes.numpy())
            # Of two classes scikit-learn keeps the scores of the second one only.
            scored = seen if len(seen) > 2 else seen[1:]
            weight[scored] = torch.from_numpy(solver.coef_).float()
            bias[scored] = torch.from_numpy(solver.intercept_).float()
            iterations = int(solver.n_iter_.max())
        unseen = torch.ones(num_classes, dtype=torch.bool)
        unseen[seen] = False
        return {
            "weight": weight,
            "bias": bias,
            "mean": mean.float(),
            "scale": scale.float(),
            "unseen": unseen,
            "converged": torch.tensor(iterations < self.max_iter),
            "c": torch.tensor(c, dtype=torch.double),
        }

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as they are, float32 on the CPU."""
        self._fitted()
        return features.detach().cpu().float()

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return class scores [N, K]; a class that training never showed scores below all others."""
        scores: Tensor = self.inference_module()(self.transform(features))
        return scores

    def inference_module(self) -> nn.Module:
        """Return the fitted function of float32 features [N, D], as a module."""
        return _Fitted(self._fitted())

    def state_dict(self) -> dict[str, Tensor]:
        """Return coefficients and the standardisation."""
        return {name: value.clone() for name, value in self._fitted().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take another head's coefficients."""
        self._state = {name: value.clone() for name, value in state.items()}

    def _fitted(self) -> dict[str, Tensor]:
        if self._state is None:
            raise UserError("LogisticRegression is not fitted", mend="call fit or load_state_dict first")
        return self._state
