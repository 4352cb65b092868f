"""How much a head differs from a baseline, judged pair by pair.

The same encoder, task, fraction and seed give a pair: both heads were fitted on the same subset and
scored on the same test sets. Their differences vary far less than either score does. The interval
is Student's t interval of the mean difference. It takes pairs as independent, which pairs of one
encoder or one task are only in part, and it speaks of the encoders and tasks at hand.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from scipy.stats import t as student

from probes.reporting.averages import Score

BASELINE = "lp"
CONFIDENCE = 0.95
METHOD = (
    "Differences from lp are paired over encoder x task x fraction x seed; brackets hold the 95 % "
    "Student t interval of their mean, with pairs taken as independent. An interval that leaves out "
    "zero is set in bold."
)


class Difference(NamedTuple):
    """A mean paired difference.

    Attributes:
        mean: Mean of head minus baseline.
        low: Lower end of the 95 % interval; None below two pairs.
        high: Upper end of the interval.
        n: Pairs.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def difference(found: Iterable[Score], head: str, baseline: str = BASELINE) -> Difference | None:
    """Return the paired difference of the metric, ``head`` minus ``baseline``; None without a pair."""
    pairs: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for score in found:
        key = (
            score.encoder_hash,
            score.task,
            score.domain,
            score.fraction,
            score.seed,
            score.downstream_noise,
        )
        if score.head in (head, baseline):
            pairs[key][score.head] = score.metric
    values = [pair[head] - pair[baseline] for pair in pairs.values() if len(pair) == 2]
    return summarise(values) if values else None


def summarise(values: list[float]) -> Difference:
    """Return mean and 95 % t interval of one or more differences."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Difference(mean, None, None, n)
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / n**0.5
    return Difference(mean, mean - half, mean + half, n)
