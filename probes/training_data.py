"""What the heads of one (encoder, task) learn from: features, labels, and which of them a fit sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.downstream_noise import SYMMETRIC, flip
from probes.samples import Labels
from probes.splits import Carving, fraction_order, subset_of


class Point(NamedTuple):
    """What one fit is asked for besides its head.

    Attributes:
        fraction: Share of the training data.
        seed: Seed of everything random.
        noise: Downstream label noise.
        model: Its noise model, see :mod:`probes.downstream_noise`.
    """

    fraction: Fraction
    seed: int
    noise: Fraction
    model: str = SYMMETRIC


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What heads may learn from.

    Attributes:
        keys: N training sample keys.
        features: Features of views 0 to V, float32 [(V + 1) N, D], view by view.
        labels: Clean training labels, [N] or [N, K], see :data:`probes.samples.Labels`.
        validation_keys: Keys of the published validation samples; None if carved from train.
        validation_features: Their features, float32 [M, D].
        validation_labels: Their labels, the same.
        carving: How the training samples are divided.
        num_classes: K; 1 where numbers are predicted.
        class_embeddings: What the encoder's text tower says of each class, float32 [K, D]; None where no head
            asks for it.
    """

    keys: Sequence[str]
    features: npt.NDArray[np.float32]
    labels: Labels
    validation_keys: Sequence[str] | None
    validation_features: npt.NDArray[np.float32] | None
    validation_labels: Labels | None
    carving: Carving
    num_classes: int
    class_embeddings: npt.NDArray[np.float32] | None = None
    _rows: dict[tuple[Fraction, int], npt.NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    _orders: dict[int, npt.NDArray[np.int64]] = dataclasses.field(default_factory=dict)

    def rows(self, fraction: Fraction, seed: int) -> npt.NDArray[np.int64]:
        """Return which training samples a fit sees, int64; worked out once for all heads."""
        fit = self.carving.fit
        if fraction == 1:
            return fit
        if (fraction, seed) not in self._rows:
            if seed not in self._orders:
                self._orders[seed] = fraction_order([self.keys[row] for row in fit], seed)
            self._rows[fraction, seed] = fit[subset_of(self._orders[seed], self.labels[fit], fraction)]
        return self._rows[fraction, seed]


def noisy_labels(data: TrainingData, point: Point) -> Labels:
    """Return the training labels of a point: flipped in what it is fitted and chosen on."""
    parts = [data.rows(point.fraction, point.seed), data.carving.validation]
    return flip(data.keys, data.labels, point.noise, data.num_classes, point.seed, parts, model=point.model)


def noisy_validation(
    data: TrainingData, labels: Labels, point: Point
) -> tuple[npt.NDArray[np.float32], Labels]:
    """Return what selection sees. Whoever has noisy annotations has them in the validation data, too."""
    if data.validation_features is None or data.validation_labels is None or data.validation_keys is None:
        held = data.carving.validation
        return data.features[held], labels[held]
    flipped = flip(
        data.validation_keys,
        data.validation_labels,
        point.noise,
        data.num_classes,
        point.seed,
        model=point.model,
    )
    return data.validation_features, flipped
