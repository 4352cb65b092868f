"""logreg: scikit-learn's logistic regression with L-BFGS, on standardised features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from nml.errors import UserError
from plugins.head import check_data
from plugins.hyper_parameters import at_least, check_types

# How far below every class that was seen a class without a training sample scores.
UNSEEN_GAP = 10.0


@dataclass(kw_only=True, eq=False)
class LogisticRegression:
    """Multinomial logistic regression to convergence; convex, so no seed changes it.

    Attributes:
        c: Inverse strength of the L2 penalty, as scikit-learn counts it.
        max_iter: Most iterations of L-BFGS.
        standardise: Whether each feature is brought to mean 0 and deviation 1 on the training samples.
            L-BFGS needs many more iterations without.
    """

    c: float = 1.0
    max_iter: int = 1000
    standardise: bool = True

    uses_validation: ClassVar[bool] = False

    _state: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        if not self.c > 0:
            raise UserError(f"c {self.c}", possible="above 0")
        at_least(self, 1, "max_iter")

    @property
    def converged(self) -> bool:
        """Whether the last fit ended before ``max_iter``."""
        return bool(self._fitted()["converged"])

    @property
    def outcome(self) -> dict[str, bool]:
        """Whether the last fit converged."""
        return {"converged": self.converged}

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,  # noqa: ARG002 - the problem is convex
        device: str = "cpu",  # noqa: ARG002 - scikit-learn computes on the CPU
    ) -> Self:
        """Fit; see :meth:`plugins.head.Head.fit`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as Solver

        num_classes = check_data(features, labels, validation, num_classes)
        rows, classes = features.detach().cpu().double(), labels.cpu()
        width = rows.shape[1]
        mean = rows.mean(dim=0) if self.standardise else torch.zeros(width, dtype=torch.double)
        deviation = rows.std(dim=0, correction=0) if self.standardise else torch.ones(width)
        scale = torch.where(deviation > 0, deviation, 1.0)
        weight, bias = torch.zeros(num_classes, width), torch.zeros(num_classes)
        seen = classes.unique()
        iterations = 0
        if len(seen) > 1:
            solver = Solver(C=self.c, max_iter=self.max_iter)
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
        self._state = {
            "weight": weight,
            "bias": bias,
            "mean": mean.float(),
            "scale": scale.float(),
            "unseen": unseen,
            "converged": torch.tensor(iterations < self.max_iter),
        }
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as they are, float32 on the CPU."""
        self._fitted()
        return features.detach().cpu().float()

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return class scores [N, K]; a class that training never showed scores below all others."""
        state = self._fitted()
        scores = (self.transform(features) - state["mean"]) / state["scale"] @ state["weight"].T + state[
            "bias"
        ]
        lowest = scores[:, ~state["unseen"]].amin(dim=1, keepdim=True)
        return torch.where(state["unseen"], lowest - UNSEEN_GAP, scores)

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
