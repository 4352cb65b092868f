"""How many runs a difference needs: the tests of :mod:`probes.reporting.inference`, turned round.

The unit is what a claim has one value of: a ladder of pre-training runs that share a seed, or a single run
where heads are compared. Values are differences already, with deviation sigma between units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from probes.reporting.inference import CONFIDENCE, LEVEL, POWER

# More units than anybody pre-trains: where as many do not do, none is named.
MOST = 10_000
# One-sided bound of the deviation that a plan from few units should use (Browne 1995, Statistics in Medicine
# 14: 1933): with the estimate itself half of the studies planned have less power than they were planned for.
CAUTIOUS = 0.80


class Deviation(NamedTuple):
    """A deviation between units, with what is known of it.

    Attributes:
        value: The estimate, or the value given.
        low: Lower end of its 95 % interval; the value itself where it was given.
        high: Upper end.
        cautious: Upper 80 % bound, which is the one to plan with.
    """

    value: float
    low: float
    high: float
    cautious: float


def deviation(value: float, units: int) -> Deviation:
    """Return the deviation that was estimated from so many units with its bounds, by the chi-squared law."""
    df = units - 1

    def bound(share: float) -> float:
        return value * math.sqrt(df / float(stats.chi2.ppf(share, df)))

    tail = (1 - CONFIDENCE) / 2
    return Deviation(value, bound(1 - tail), bound(tail), bound(1 - CAUTIOUS))


def of_ladders(between_runs: float, levels: int, shared: float = 0.0) -> float:
    """Return the deviation between ladders of "mean of ``levels`` noisy levels minus 0 %".

    Args:
        between_runs: Deviation between runs of one level, sigma.
        levels: Noisy levels whose mean is taken, k.
        shared: Correlation of two runs of one ladder (same first weights, same order), rho.

    Returns:
        sigma * sqrt((1 - rho) * (1 + 1 / k)).
    """
    return between_runs * math.sqrt((1 - shared) * (1 + 1 / levels))


def power_to_show(effect: float, sigma: float, units: int, comparisons: int = 1) -> float:
    """Return how often a two-sided t test at 5 % shows a true difference.

    Args:
        effect: The true difference.
        sigma: Deviation between units, in the same unit.
        units: Units.
        comparisons: Claims that are adjusted together: the test is then at the level that Holm's adjustment
            gives the first of them, which is the hardest.
    """
    errors, bound = _errors(units), float(stats.t.ppf(1 - LEVEL / comparisons / 2, units - 1))
    found = effect / sigma
    either = stats.norm.cdf((found - bound * errors) * math.sqrt(units)) + stats.norm.cdf(
        (-found - bound * errors) * math.sqrt(units)
    )
    return float(np.mean(either))


def power_to_rule_out(margin: float, sigma: float, units: int, comparisons: int = 1) -> float:
    """Return how often two one-sided t tests at 5 % show that there is no effect, where there is none.

    The mean of units has to lie within ``margin`` by more than t standard errors.
    """
    room = margin / sigma - float(stats.t.ppf(1 - LEVEL / comparisons, units - 1)) * _errors(units)
    within = 2 * stats.norm.cdf(room * math.sqrt(units)) - 1
    return float(np.mean(np.maximum(within, 0.0)))


def _errors(units: int) -> np.ndarray:
    """Return standard errors that so many units of deviation 1 may show, each as likely as the next.

    What a test does given its standard error is a normal chance; the mean over these is the noncentral t law,
    which scipy has too but not for the large arguments of two units.
    """
    shares = (np.arange(2000) + 0.5) / 2000
    return np.sqrt(stats.chi2.ppf(shares, units - 1) / (units - 1) / units)


def units_to_show(effect: float, sigma: float, comparisons: int = 1) -> int | None:
    """Return how many units show a true difference in 80 % of studies; None for more than 10,000."""
    return _fewest(lambda units: power_to_show(effect, sigma, units, comparisons))


def units_to_rule_out(margin: float, sigma: float, comparisons: int = 1) -> int | None:
    """Return how many units show the lack of an effect in 80 % of studies; None for more than 10,000."""
    return _fewest(lambda units: power_to_rule_out(margin, sigma, units, comparisons))


def shown_by(units: int, sigma: float, comparisons: int = 1) -> float:
    """Return the smallest true difference that so many units show in 80 % of studies."""
    from scipy.optimize import brentq

    # Of two units at a hundredth of the usual level it is several hundred deviations.
    wanted = brentq(lambda effect: power_to_show(effect, 1.0, units, comparisons) - POWER, 1e-6, 1e6)
    return sigma * float(wanted)


def _fewest(power: Callable[[int], float]) -> int | None:
    """Return the fewest units of enough power, which grows with them."""
    low, high = 1, 2
    while power(high) < POWER:
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
