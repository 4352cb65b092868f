"""Noise by a transition matrix: row i says what class i turns into.

The matrix T, [K, K] and row-stochastic, comes from ``--model-file`` (CSV or npy). It gives the
pattern, and the ratio the amount: the off-diagonal part is scaled so that exactly round(r N) labels
flip. ``--noise own`` is the matrix's own rate on the data, which leaves it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from shards.hashing import mix
from shards.noise import Flips, Integers, Kind, Population, exact_count
from shards.noise.matrix_file import read_array
from shards.noise.symmetric import balanced_rows
from shards.quota import quota_sequence

_TOLERANCE = 1e-6
# Real weights become integers with this many parts a unit: 30 bits, so that products stay in 64.
_PARTS = 1 << 30


class TransitionMatrix:
    """Exactly round(r N) flips; class rows within one of their share, cells within one of theirs."""

    kind: ClassVar[Kind] = "class"
    nested: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        if not model_file:
            raise UserError(
                "--model transition-matrix: needs the matrix",
                mend="name it with --model-file matrix.csv (a row a class, row i is what class i turns into)",
            )
        self._file = model_file
        self._matrix = np.asarray(read_array(Path(model_file), "a transition matrix"), np.float64)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Share flips out among the rows, then each row's flips among its cells."""
        off_diagonal = self._checked(population.num_classes)
        leave = off_diagonal.sum(axis=1)
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        weights = _integer_weights(population.class_sizes * leave)
        self._check_reachable(population, leave, max(counts, default=0), ratios)
        rows = balanced_rows(population, max(counts, default=0), seed, weights)
        values = _targets(population.labels[rows], off_diagonal, seed)
        return [Flips(rows[:count], values[:count]) for count in counts]

    def own_rate(self, population: Population) -> Fraction:
        """Return the share of labels that the matrix as it is would flip, to four decimals."""
        leave = self._checked(population.num_classes).sum(axis=1)
        rate = float(population.class_sizes @ leave) / max(len(population), 1)
        return Fraction(f"{rate:.4f}")

    def _checked(self, num_classes: int) -> npt.NDArray[np.float64]:
        """Return the off-diagonal part, [K, K]."""
        matrix = self._matrix
        if matrix.shape != (num_classes, num_classes):
            raise UserError(
                f"--model-file {self._file}: has shape {'x'.join(map(str, matrix.shape))}",
                possible=f"{num_classes}x{num_classes}, a row and a column a class",
            )
        if not np.all(np.isfinite(matrix)) or matrix.min() < 0:
            raise UserError(f"--model-file {self._file}: holds a negative or non-finite number")
        wrong = np.flatnonzero(np.abs(matrix.sum(axis=1) - 1) > _TOLERANCE)
        if len(wrong):
            columns = np.all(np.abs(matrix.sum(axis=0) - 1) <= _TOLERANCE)
            raise UserError(
                f"--model-file {self._file}: row {wrong[0]} adds up to {matrix[wrong[0]].sum():.6g}, not 1",
                mend="transpose it: its columns add up to 1" if columns else "make every row add up to 1",
            )
        return matrix * (1 - np.eye(num_classes))

    def _check_reachable(
        self,
        population: Population,
        leave: npt.NDArray[np.float64],
        count: int,
        ratios: Sequence[Fraction],
    ) -> None:
        """Refuse a ratio that would flip more of a class than it has."""
        expected = float(population.class_sizes @ leave)
        if count and not expected:
            raise UserError(f"--model-file {self._file}: flips nothing", mend="put weight off the diagonal")
        # The weights are rounded, so the last millionth is not promised.
        if count and count / expected * float(leave.max()) > 1 - _TOLERANCE:
            # Rounded down twice: what is offered must not be refused.
            most = int(expected / float(leave.max()) * (1 - _TOLERANCE)) / len(population)
            most = math.floor(most * 1e4) / 1e4
            own = float(self.own_rate(population))
            raise UserError(
                f"--noise {float(max(ratios)):g}: more than class {int(leave.argmax())} has samples for",
                possible=f"up to {most:g} with this matrix"
                + (f"; its own rate is {own:g}" if own <= most else ""),
            )


def _integer_weights(weights: npt.NDArray[np.float64]) -> Integers:
    """Scale weights to integers whose sum is about _PARTS, keeping none that is positive at zero."""
    total = float(weights.sum())
    if not total:
        return np.zeros(len(weights), np.int64)
    scaled = np.rint(weights / total * _PARTS).astype(np.int64)
    return np.where((weights > 0) & (scaled == 0), 1, scaled)


def _targets(labels: Integers, off_diagonal: npt.NDArray[np.float64], seed: int) -> Integers:
    """Give the m-th flip of a class the m-th pick of its row, int64 [k]."""
    values = np.empty(len(labels), np.int64)
    for label in np.unique(labels).tolist():
        flips = np.flatnonzero(labels == label)
        weights = _integer_weights(off_diagonal[label])
        ties = mix(np.arange(len(weights), dtype=np.uint64), seed, f"cell turn {label}")
        values[flips] = quota_sequence(weights, len(flips), ties)
    return values
