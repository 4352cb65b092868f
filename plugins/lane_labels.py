"""The labels of every copy that the trainer trains at once, and the units of those that are numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins.trainable import HeadModule


class LaneLabels:
    """The labels of each lane; equal ones are kept once.

    Numbers are given with the mean of a lane's samples taken out, in units of their deviation: learning
    rates, weight decay and the weight of other terms would have their unit in them.

    Args:
        labels: Of each lane, the labels of the whole training set, [N] or [N, K].
        rows: The rows of the training set that each lane sees, int64 [n]; None is all of them.
        device: Where to keep them.
    """

    def __init__(self, labels: Sequence[Tensor], rows: Sequence[Tensor | None], device: str) -> None:
        distinct = {id(own): own for own in labels}
        places = {key: place for place, key in enumerate(distinct)}
        self._of_lane = torch.tensor([places[id(own)] for own in labels], device=device)
        self._labels = torch.stack(list(distinct.values())).to(device)
        # Offset and unit of each lane, [L, 2].
        self._units: Tensor | None = None
        if labels[0].is_floating_point():
            seen = [
                own if part is None else own[part.to(own.device)]
                for own, part in zip(labels, rows, strict=True)
            ]
            units = [(float(part.double().mean()), float(part.double().std(correction=0))) for part in seen]
            self._units = torch.tensor(
                [(mean, spread or 1.0) for mean, spread in units], dtype=labels[0].dtype, device=device
            )

    def of(self, rows: Tensor) -> Tensor:
        """Return the labels of rows [L, M] of the training set, a row a lane."""
        found = self._labels[self._of_lane[: len(rows), None], rows]
        if self._units is None:
            return found
        offset, unit = self._units[: len(rows), :, None].unbind(dim=1)
        return ((found - offset) / unit).float()

    def restore(self, number: int, module: HeadModule) -> None:
        """Have a lane's trained module predict numbers as they were given."""
        if self._units is not None:
            module.predict_in(*self._units[number].tolist())
