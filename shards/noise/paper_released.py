"""The caption swap of the paper's released code, for comparison with what it set out to do.

It draws r N / 2 pairs of samples with replacement and swaps their captions one pair after another,
so some samples are drawn twice: 5, 10, 20 and 30 % come out as 4.9, 9.5, 18.1 and 25.8 %. The
released script is unseeded; here the draws are keyed by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np

from shards.hashing import mix
from shards.noise import Flips, Kind, Population, exact_count, refuse_model_file


class PaperReleased:
    """Swaps with replacement: misses the ratio, and is not nested."""

    kind: ClassVar[Kind] = "caption"
    nested: ClassVar[bool] = False
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        refuse_model_file("paper-released", model_file)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Swap pair after pair, and report the samples that end with another's caption."""
        # Drawn positions mean places in this order, so that the order of the source does not matter.
        order = population.order(seed, "select")
        plans = []
        for ratio in ratios:
            pairs = exact_count(ratio, len(population)) // 2
            numbers = np.arange(2 * pairs, dtype=np.uint64)
            draws = (mix(numbers, seed, "draw") % np.uint64(len(population))).astype(np.int64)
            holder = np.arange(len(population), dtype=np.int64)
            holds = holder.tolist()
            for first, second in draws.reshape(-1, 2).tolist():
                holds[first], holds[second] = holds[second], holds[first]
            moved = np.flatnonzero(np.array(holds, np.int64) != holder)
            plans.append(Flips(order[moved], order[np.array(holds, np.int64)[moved]]))
        return plans
