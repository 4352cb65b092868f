"""What pre-training noise changes, over ladders: runs of one pre-training seed at several noise levels.

Runs that share a seed share their first weights and the order of their data, so that a level is compared with
the clean one within its ladder, and the ladder is the unit. Where names tell no seed, or seeds do not repeat,
the runs of two levels are compared as groups.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from probes.reporting.averages import Score, noise_key, per_run
from probes.reporting.inference import CONFIDENCE, Estimate, contrast, estimate

# Levels that a trend needs: two are a difference.
LEVELS = 3


class Run(NamedTuple):
    """One pre-training run.

    Attributes:
        level: Its noise, in percent.
        repetition: Its pre-training seed, as far as its name tells.
        value: What was measured of it.
    """

    level: float
    repetition: str | None
    value: float


def runs_of(found: Iterable[Score], value: Callable[[Score], float]) -> dict[str, Run]:
    """Return the runs behind scores of one family, head and domain, by encoder hash.

    Each has its mean over the same tasks.
    """
    known = [score for score in found if score.noise is not None and math.isfinite(value(score))]
    values = per_run((score, value(score)) for score in known)
    first = {score.encoder_hash: score for score in reversed(known)}
    return {
        encoder: Run(noise_key(first[encoder]), first[encoder].repetition, one)
        for encoder, one in values.items()
    }


def ladders(runs: Collection[Run], levels: Iterable[float]) -> list[list[float]]:
    """Return a row of values for every ladder that has all of ``levels``, in their order.

    Empty if a seed stands for several runs of one level: then it does not say which belong together.
    """
    wanted = list(levels)
    seen = Counter((run.level, run.repetition) for run in runs if run.repetition is not None)
    if any(count > 1 for count in seen.values()):
        return []
    rows: dict[str, dict[float, float]] = defaultdict(dict)
    for run in runs:
        if run.repetition is not None:
            rows[run.repetition][run.level] = run.value
    return [[row[level] for level in wanted] for _, row in sorted(rows.items()) if set(wanted) <= row.keys()]


def change(runs: Collection[Run], levels: Sequence[float], reference: float) -> Estimate | None:
    """Return the mean of ``levels`` minus the ``reference`` level; None where one of them has no run.

    Over ladders where two have all levels, otherwise as two groups of runs, otherwise of what there is.
    """
    rows = ladders(runs, [reference, *levels])
    differences = [statistics.fmean(row[1:]) - row[0] for row in rows]
    if len(differences) > 1:
        return estimate(differences)
    noisy, clean = ([run.value for run in runs if run.level in of] for of in (set(levels), {reference}))
    if {run.level for run in runs} < {reference, *levels} or not noisy or not clean:
        return None
    lone_ladder = differences and min(len(noisy), len(clean)) < 2
    return estimate(differences) if lone_ladder else contrast(noisy, clean)


class Trend(NamedTuple):
    """Whether a quantity goes one way with the noise.

    Attributes:
        statistic: Page's L over ladders; None below two ladders or three levels.
        p: Its one-sided p value for the order that was declared.
        slope: Change for each percentage point of noise, the least-squares slope of a ladder as the unit.
    """

    statistic: float | None
    p: float | None
    slope: Estimate | None


def trend(runs: Collection[Run], levels: Sequence[float], *, rising: bool) -> Trend:
    """Test the declared order over the ladders that have all levels.

    Args:
        runs: The runs.
        levels: Noise levels in percent, ascending.
        rising: The declared order: whether the quantity rises with the noise.
    """
    rows = ladders(runs, levels)
    if len(levels) < LEVELS or not rows:
        return Trend(None, None, None)
    slope = estimate([float(stats.linregress(levels, row).slope) for row in rows])
    if len(rows) < 2:
        return Trend(None, None, slope)
    table = np.array(rows)
    page = stats.page_trend_test(table if rising else table[:, ::-1])
    return Trend(float(page.statistic), float(page.pvalue), slope)


class Correlation(NamedTuple):
    """A rank correlation over pre-training runs with its 95 % interval, None below four runs."""

    rho: float
    low: float | None
    high: float | None
    p: float | None
    runs: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Return Spearman's correlation with Fisher's interval of it; None where there is none to compute."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho, p = stats.spearmanr(x, y)
    if len(x) < 4 or abs(rho) > 1 - 1e-12:
        # Of a perfect order the interval has no width, which would claim more than so few runs can.
        return Correlation(float(rho), None, None, float(p) if len(x) > 3 else None, len(x))
    low, high = stats.pearsonr(stats.rankdata(x), stats.rankdata(y)).confidence_interval(CONFIDENCE)
    return Correlation(float(rho), float(low), float(high), float(p), len(x))
