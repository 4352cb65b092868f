"""The scale of a head's features: one number, fitted on what the head is trained on and kept with it.

Learning rates, weight decay, first weights and L_COV have the unit of the features in them, which encoders do
not agree on: what an API returns are unit vectors, 1 / sqrt(D) a feature; what a ResNet pools is around 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_scales(features: Tensor, parts: Sequence[Tensor | None]) -> list[float]:
    """Return, for each part, the number that its features are to be divided by.

    It is the root of the mean variance of the features, so that a mean that all samples share does not count.
    Where the samples are all the same it is their root mean square, and 1 where that is 0.

    Args:
        features: [N, D], any floating dtype.
        parts: The rows of each part, int64 [n]; None is all of them.
    """
    sizes = torch.cat([_mean_squares(rows) for rows in features.split(ROWS)])
    found: dict[int, float] = {}
    for part in parts:
        # Copies of one pass mostly share their rows, as one object.
        if id(part) not in found:
            found[id(part)] = _scale(features, sizes, part)
    return [found[id(part)] for part in parts]


# Rows that are brought to float64 at once.
ROWS = 8192
# A variance below this share of the mean square is rounding of float32 features.
ROUNDING = 1e-12


def _scale(features: Tensor, sizes: Tensor, part: Tensor | None) -> float:
    if part is None:
        pieces, square = features.split(ROWS), float(sizes.mean())
    else:
        part = part.to(features.device)
        pieces, square = tuple(features[rows] for rows in part.split(ROWS)), float(sizes[part].mean())
    count = sum(len(piece) for piece in pieces)
    mean = torch.stack([piece.double().sum(dim=0) for piece in pieces]).sum(dim=0) / count
    variance = square - float(mean.square().mean())
    return (variance if variance > ROUNDING * square else square) ** 0.5 or 1.0


def _mean_squares(rows: Tensor) -> Tensor:
    return rows.double().square().mean(dim=1)
