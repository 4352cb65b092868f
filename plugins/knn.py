"""knn: the votes of the nearest training samples, weighted by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins.head import check_data
from plugins.hyper_parameters import at_least, check_types

# Rows compared with all training samples at once.
ROWS = 1024


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
            "votes": functional.one_hot(labels.to(device), num_classes).float(),
        }
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as they are, float32 on the CPU."""
        self._fitted()
        return features.detach().cpu().float()

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return each class's share of the votes [N, K]."""
        state = self._fitted()
        k = min(self.k, len(state["samples"]))
        scores = []
        for rows in features.detach().split(ROWS):
            unit = functional.normalize(rows.to(state["samples"]), dim=1)
            nearest = (unit @ state["samples"].T).topk(k, dim=1)
            weights = torch.softmax(nearest.values / self.temperature, dim=1)
            scores.append((weights.unsqueeze(2) * state["votes"][nearest.indices]).sum(dim=1).cpu())
        return torch.cat(scores)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the training samples, normalised, and their votes."""
        return {name: value.cpu().clone() for name, value in self._fitted().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take another head's training samples."""
        self._state = {name: value.clone() for name, value in state.items()}

    def _fitted(self) -> dict[str, Tensor]:
        if self._state is None:
            raise UserError("NearestNeighbours is not fitted", mend="call fit or load_state_dict first")
        return self._state
