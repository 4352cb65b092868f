"""Pair-flip noise: a label flips to one fixed other class, by default the next one.

The asymmetric noise of B. Han et al., Co-teaching (NeurIPS 2018). ``--model-file`` may name a CSV
with a line ``from,to`` a class (indices); a class without a line is left alone by the map of
G. Patrini et al. (CVPR 2017), so its samples are never flipped.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np

from nml.errors import UserError
from shards.noise import Flips, Integers, Kind, Population, exact_count
from shards.noise.symmetric import balanced_rows


class PairFlip:
    """Exactly round(r N) flips, every mapped class within one of its share."""

    kind: ClassVar[Kind] = "class"
    nested: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        self._map = _read_map(Path(model_file)) if model_file else None

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Flip the first k samples of one sequence that is balanced over the mapped classes."""
        targets = self._targets(population.num_classes)
        sizes = np.where(targets >= 0, population.class_sizes, 0)
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        largest = max(counts, default=0)
        if largest > sizes.sum():
            raise UserError(
                f"--noise {float(max(ratios)):g}: {largest:,} flips, and the mapped classes have "
                f"{sizes.sum():,} samples",
                mend="lower the ratio, or map more classes",
            )
        rows = balanced_rows(population, largest, seed, sizes)
        values = targets[population.labels[rows]]
        return [Flips(rows[:count], values[:count]) for count in counts]

    def _targets(self, num_classes: int) -> Integers:
        """Return the class each class flips to, int64 [K]; -1 for a class that is left alone."""
        if num_classes < 2:
            raise UserError("--model pair-flip: needs at least 2 classes")
        if self._map is None:
            return (np.arange(num_classes, dtype=np.int64) + 1) % num_classes
        targets = np.full(num_classes, -1, np.int64)
        for source, target in self._map.items():
            if not (0 <= source < num_classes and 0 <= target < num_classes):
                raise UserError(
                    f"--model-file: maps class {source} to {target}", possible=f"0 to {num_classes - 1}"
                )
            targets[source] = target
        return targets


def _read_map(path: Path) -> dict[int, int]:
    try:
        with path.open(newline="") as file:
            pairs = [
                (int(row[0]), int(row[1])) for row in csv.reader(file) if row and row[0].strip().isdigit()
            ]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"--model-file {path}: not a map of classes: {error}", mend="write a line FROM,TO a class"
        ) from error
    same = [source for source, target in pairs if source == target]
    if not pairs or same or len(dict(pairs)) != len(pairs):
        what = f"maps {same[0]} to itself" if same else "maps a class twice" if pairs else "maps no class"
        raise UserError(
            f"--model-file {path}: {what}", mend="write a line FROM,TO a class, FROM and TO differing"
        )
    return dict(pairs)
