"""How well a measure that is there early tells the end of runs at a noise level that it has not seen.

Of each noise level in turn, the final scores of its runs are told by a straight line through the runs of
all other levels. A measure is held against validation accuracy, told in the same way on the same runs: by how
much its mean absolute error is smaller, a value a level. The level is the unit, since what is to be told is a
level that was never trained; Student's t over levels is what these few bear
(:mod:`probes.reporting.inference`), and Holm's adjustment counts every measure that was tried, so that trying
more finds no more by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.reporting.inference import LEVEL, Estimate, estimate, holm

Numbers = npt.NDArray[np.float64]
# With four, a measure that is as good as validation accuracy was called better in 7 % of simulated studies.
FEWEST_LEVELS = 5
CONSTANT = "constant"
BETTER, NO_BETTER = "better than validation accuracy", "no better than validation accuracy"


class Foretold(NamedTuple):
    """What one measure tells of one target.

    Attributes:
        measure: Its name; ``constant`` is the mean of the other levels' runs.
        levels: Noise levels that it was judged on.
        error: Mean absolute error over levels, in the unit of the target.
        gain: By how much validation accuracy errs more, over levels; None of that itself.
        p_holm: Adjusted over the measures that were tried; None where there is no interval.
        verdict: What it is worth; empty of validation accuracy itself.
    """

    measure: str
    levels: int
    error: float
    gain: Estimate | None
    p_holm: float | None
    verdict: str


def told(x: Numbers, y: Numbers, levels: npt.NDArray[Any]) -> Numbers:
    """Return what a line through the runs of all other levels tells of each run, [..., R].

    Where ``x`` does not differ among them, it is their mean.

    Args:
        x: The measure of each run, [..., R]; leading dimensions are studies of their own.
        y: The target, [..., R].
        levels: The level of each run, [R].
    """
    found = np.empty(np.broadcast_shapes(x.shape, y.shape))
    for level in np.unique(levels):
        held, rest = levels == level, levels != level
        mean_x, mean_y = x[..., rest].mean(-1, keepdims=True), y[..., rest].mean(-1, keepdims=True)
        across, along = x[..., rest] - mean_x, y[..., rest] - mean_y
        spread = (across**2).sum(-1, keepdims=True)
        flat = spread <= 1e-12 * np.maximum(1.0, mean_x**2)
        slope = np.where(flat, 0.0, (across * along).sum(-1, keepdims=True) / np.where(flat, 1.0, spread))
        found[..., held] = mean_y + slope * (x[..., held] - mean_x)
    return found


def level_errors(x: Numbers, y: Numbers, levels: npt.NDArray[Any]) -> Numbers:
    """Return the mean absolute error of :func:`told` at each level, [..., L]; arguments are its."""
    errors = np.abs(told(x, y, levels) - y)
    return np.stack([errors[..., levels == level].mean(-1) for level in np.unique(levels)], axis=-1)


def foretell(
    measures: Mapping[str, Numbers], validation: Numbers, y: Numbers, levels: npt.NDArray[Any]
) -> list[Foretold]:
    """Judge measures against validation accuracy.

    Args:
        measures: Of each run, [R]; NaN where a run has none, which leaves out the whole level.
        validation: Validation accuracy of each run, [R].
        y: The target of each run, [R].
        levels: The level of each run, [R].

    Returns:
        Validation accuracy and the constant, then the measures that have enough levels, best first.
    """
    own = level_errors(validation, y, levels)
    rows = [Foretold("validation accuracy", len(own), float(own.mean()), None, None, "")]
    judged: list[tuple[str, Numbers, Estimate]] = []
    for name, x in {CONSTANT: np.zeros_like(y), **measures}.items():
        kept = ~np.isin(levels, np.unique(levels[np.isnan(x)]))
        if len(np.unique(levels[kept])) < FEWEST_LEVELS:
            continue
        errors = level_errors(x[kept], y[kept], levels[kept])
        base = level_errors(validation[kept], y[kept], levels[kept])
        judged.append((name, errors, estimate((base - errors).tolist())))
    # The constant is no candidate: it is shown to tell whether validation accuracy tells anything.
    tried = [gain.p if name != CONSTANT else None for name, _, gain in judged]
    for (name, errors, gain), p in zip(judged, holm(tried), strict=True):
        better = p is not None and p < LEVEL and gain.mean > 0
        verdict = BETTER if better else NO_BETTER
        rows.append(Foretold(name, len(errors), float(errors.mean()), gain, p, verdict))
    return rows[:2] + sorted(rows[2:], key=lambda row: row.error)
