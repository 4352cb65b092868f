"""What a handful of runs shows: means with intervals, marks, and the differences that would have been missed.

A value here is of one pre-training run (or of one ladder of runs that share a seed), never of one fit: fits
of one encoder share its luck, so that their number says nothing of another encoder. Student's t with one
degree of freedom less than there are runs stays at its level from two runs on, also where their variances
differ, and conservative there (Ibragimov and Müller 2010); cluster-robust errors and bootstraps do not below
about eleven.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05
POWER = 0.80
# Values that differ by less differ by rounding.
EQUAL = 1e-9


class Estimate(NamedTuple):
    """A mean of runs, or a difference of two means of runs, with what is known of it.

    Attributes:
        mean: The mean, or the difference of the means.
        low: Lower end of the 95 % interval; None where there is no interval.
        high: Upper end.
        p: Two-sided p value of a mean of zero; None where there is no interval.
        values: One value a run (or a ladder).
        against: One value a run of the group that ``values`` were compared with; empty where each value is
            a difference already.
        t: The t statistic; None where there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    values: tuple[float, ...]
    against: tuple[float, ...] = ()
    t: float | None = None

    @property
    def n(self) -> int:
        """Runs (or ladders) behind the mean."""
        return len(self.values) + len(self.against)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of runs with Student's t interval, df = runs - 1.

    Without an interval if there is one run, or if all agree to the last digit: on a small test set two runs
    often differ by nothing, which is no evidence that a third would not.
    """
    found = tuple(values)
    if _constant(found):
        return Estimate(statistics.fmean(found), None, None, None, found)
    test = stats.ttest_1samp(found, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Estimate(
        statistics.fmean(found), float(low), float(high), float(test.pvalue), found, (), float(test.statistic)
    )


def contrast(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return the difference of the means of two groups of runs that are not paired, by Welch's t test."""
    one, other = tuple(first), tuple(second)
    mean = statistics.fmean(one) - statistics.fmean(other)
    if _constant(one) or _constant(other):
        return Estimate(mean, None, None, None, one, other)
    test = stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Estimate(mean, float(low), float(high), float(test.pvalue), one, other, float(test.statistic))


def _constant(values: Sequence[float]) -> bool:
    return max(values) - min(values) < EQUAL


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p value of each comparison; those without one stay None and do not count."""
    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests

    adjusted = iter(multipletests(known, alpha=LEVEL, method="holm")[1])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def equivalence(found: Estimate, margin: float) -> float | None:
    """Return the p value of two one-sided t tests (TOST): the difference lies within ``margin`` of zero.

    None where there is no interval. Only this test can say that there is no effect (worth the margin).
    """
    if found.low is None:
        return None
    from statsmodels.stats.weightstats import DescrStatsW, ttost_ind

    if found.against:
        return float(ttost_ind(found.values, found.against, -margin, margin, usevar="unequal")[0])
    return float(DescrStatsW(found.values).ttost_mean(-margin, margin)[0])


def detectable(found: Estimate) -> float | None:
    """Return the smallest true difference that so many runs of such spread show in 80 % of studies.

    For a single two-sided comparison at 5 %, by the noncentral t distribution. None without an interval.
    """
    if found.low is None:
        return None
    from statsmodels.stats.power import TTestIndPower, TTestPower

    if found.against:
        one, other = found.values, found.against
        pooled = stats.describe(one).variance * (len(one) - 1) + stats.describe(other).variance * (
            len(other) - 1
        )
        spread = float(pooled / (len(one) + len(other) - 2)) ** 0.5
        effect = TTestIndPower().solve_power(
            nobs1=len(one), ratio=len(other) / len(one), alpha=LEVEL, power=POWER
        )
    else:
        spread = statistics.stdev(found.values)
        effect = TTestPower().solve_power(nobs=len(found.values), alpha=LEVEL, power=POWER)
    return float(effect) * spread


class Judged(NamedTuple):
    """A comparison among others.

    Attributes:
        found: The estimate.
        p_holm: Holm's adjusted p value over all comparisons that were judged together.
        marked: Whether it is shown as a difference that the runs bear out.
    """

    found: Estimate
    p_holm: float | None
    marked: bool


def judge(found: Sequence[tuple[Estimate | None, bool]]) -> list[Judged | None]:
    """Judge comparisons together.

    Args:
        found: Each comparison, None where there is none, and whether any of its noise levels has two runs or
            more. Without, level and run cannot be told apart, and nothing is marked.
    """
    countable = [one.p if one and repeated else None for one, repeated in found]
    return [
        None if one is None else Judged(one, p, p is not None and p < LEVEL)
        for (one, _), p in zip(found, holm(countable), strict=True)
    ]
