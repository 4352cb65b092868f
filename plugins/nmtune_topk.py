"""nmtune-topk: NMTune that keeps the k largest singular values dominant, k given or chosen."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from nml.errors import UserError
from plugins.head import Labelled, at_least, check_data, hold_out
from plugins.losses import Products, top_share
from plugins.nmtune import NMTune


@dataclass(kw_only=True, eq=False)
class NMTuneTopK(NMTune):
    """L_SVD = -sum_i w_i sigma_i / sum_j sigma_j with w_i = 1 for the k largest: Eq. 5 is k = 1.

    Attributes:
        k: How many; ``auto`` tries ``grid`` and keeps what validation data like best, the smaller of equals.
            Without validation data a fifth of the training samples is held out to choose by.
        grid: The candidates of ``auto``.
        softness: 0 cuts sharply after k; above 0, w_i = sigmoid((k + 1/2 - i) / softness), so that a value
            that changes places with its neighbour changes the loss little.
    """

    k: int | Literal["auto"] = "auto"
    grid: tuple[int, ...] = (1, 2, 5, 10)
    softness: float = 0.0

    uses_validation: ClassVar[bool] = True

    _chosen: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != "auto" and self.k < 1:
            raise UserError(f"k {self.k!r}", possible="auto, or 1 or more")
        if not self.grid or min(self.grid) < 1:
            raise UserError(f"grid {self.grid}", possible="one or more numbers, each 1 or more")
        at_least(self, 0, "softness")

    @property
    def chosen_k(self) -> int:
        """The k in force: as given, or as chosen by the last fit."""
        if self.k != "auto":
            return self.k
        if self._chosen is None:
            raise UserError("k is not chosen yet", mend="call fit first")
        return self._chosen

    @property
    def tries(self) -> int:
        """How many k a fit compares."""
        return len(set(self.grid)) if self.k == "auto" else 1

    @property
    def outcome(self) -> dict[str, int]:
        """What the last fit chose."""
        return {"k": self.chosen_k}

    def spectral_term(self, of: Products) -> Tensor:
        """Return the unweighted L_SVD with the k in force."""
        return top_share(of, k=self.chosen_k, softness=self.softness)

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> Self:
        """Train, once a candidate where k is ``auto``; see :meth:`plugins.head.Head.fit`."""
        num_classes = check_data(features, labels, validation, num_classes)
        if self.k == "auto":
            self._choose(features, labels, validation, num_classes, seed, device)
        return super().fit(features, labels, num_classes=num_classes, seed=seed, device=device)

    def _choose(
        self,
        features: Tensor,
        labels: Tensor,
        validation: tuple[Tensor, Tensor] | None,
        num_classes: int,
        seed: int,
        device: str,
    ) -> None:
        if validation is None:
            (features, labels), validation = hold_out(Labelled(features, labels), seed)
        right: dict[int, int] = {}
        for k in sorted(set(self.grid)):
            candidate = copy.copy(self)
            candidate.k = k
            candidate.fit(features, labels, num_classes=num_classes, seed=seed, device=device)
            named = candidate.predict_logits(validation[0]).argmax(dim=1)
            right[k] = int((named == validation[1].cpu()).sum())
        self._chosen = max(right, key=lambda k: (right[k], -k))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the k in force."""
        return super().state_dict() | {"chosen_k": torch.tensor(self.chosen_k)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
        """Take the weights, and the k they were trained with."""
        state = dict(state)
        self._chosen = int(state.pop("chosen_k"))
        super().load_state_dict(state)
