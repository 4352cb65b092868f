"""knn: the votes of the nearest training samples, weighted by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins.head import check_data
from plugins.hyper_parameters import at_least, check_types

# Similarities that are held at once.
AT_ONCE = 1 << 24
# The least that classes are scored as together: a class without votes may be right all the same.
NO_VOTES = 0.01


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
        state = self._fitted()
        samples, labels = state["samples"], state["labels"]
        k = min(self.k, len(samples))
        shares = torch.zeros(len(features), int(state["num_classes"]))
        parts = max(1, AT_ONCE // len(samples))
        for rows, share in zip(features.detach().split(parts), shares.split(parts), strict=True):
            unit = functional.normalize(rows.to(samples), dim=1)
            nearest = (unit @ samples.T).topk(k, dim=1)
            weights = torch.softmax(nearest.values / self.temperature, dim=1)
            # On the CPU, where the votes of a class are added in one order.
            share.scatter_add_(1, labels[nearest.indices].cpu(), weights.cpu())
        return shares.clamp_(min=NO_VOTES / shares.shape[1]).log_()

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
