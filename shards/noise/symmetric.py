"""Symmetric noise: a label flips to any of the other classes with equal chance.

The paper (arXiv 2309.17002, section 2.1) flips "uniformly the ground truth class label into the
other classes", so K - 1 candidates. Drawing from all K would realise only r (K - 1) / K.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np

from nml.errors import UserError
from shards.hashing import Hashes, mix
from shards.noise import Flips, Integers, Kind, Population, exact_count, refuse_model_file
from shards.quota import picks_by_rank, quota_sequence


class Symmetric:
    """Exactly round(r N) flips, every class within one of its share, uniform over the other classes."""

    kind: ClassVar[Kind] = "class"
    nested: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        refuse_model_file("symmetric", model_file)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Flip the first k samples of one balanced sequence."""
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        if population.num_classes < 2 and any(counts):
            raise UserError(
                f"--noise: the source has {population.num_classes} class, and a flip needs another one",
                mend="use a source with at least 2 classes, or --noise 0",
            )
        rows = balanced_rows(population, max(counts, default=0), seed)
        values = other_classes(
            population.labels[rows], mix(population.hashes[rows], seed, "target"), population.num_classes
        )
        return [Flips(rows[:count], values[:count]) for count in counts]


def balanced_rows(population: Population, count: int, seed: int, weights: Integers | None = None) -> Integers:
    """Return ``count`` samples to flip, int64 [count], in an order whose every prefix is balanced.

    Within a class the samples with the smallest keyed hash come first; how the classes take turns
    is :func:`shards.quota.quota_sequence`, by their sizes unless by ``weights``, int64 [K].
    """
    classes = np.arange(population.num_classes, dtype=np.uint64)
    weights = population.class_sizes if weights is None else weights
    sequence = quota_sequence(weights, count, mix(classes, seed, "class turn"))
    order = population.order(seed, "select")
    return picks_by_rank(population.labels, order, sequence, population.num_classes)


def other_classes(labels: Integers, hashes: Hashes, num_classes: int) -> Integers:
    """Return a class other than ``labels`` for each sample, uniform over the K - 1, int64 [k]."""
    # 64 random bits modulo K - 1: the bias is below 1e-13 for a million classes.
    step = (hashes % np.uint64(max(num_classes - 1, 1))).astype(np.int64)
    return (labels + 1 + step) % max(num_classes, 1)
