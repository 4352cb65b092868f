"""Numbers as text, the same way in every table and caption."""

from __future__ import annotations

import math
from collections.abc import Iterable

from probes.reporting.averages import Mean
from probes.reporting.paired import Difference
from probes.reporting.records import Cell
from probes.results import Row

NONE = "–"


def percent(mean: Mean | None) -> str:
    """Return a mean of shares as ``93.4 ± 0.5``, in percent; without a spread for one run."""
    if mean is None:
        return NONE
    spread = "" if mean.sd is None else f" ± {100 * mean.sd:.1f}"
    return f"{100 * mean.value:.1f}{spread}"


def number(mean: Mean | None) -> str:
    """Return a mean with two decimals."""
    return NONE if mean is None or math.isnan(mean.value) else f"{mean.value:.2f}"


def points(found: Difference | None) -> Cell:
    """Return a difference of shares as ``+1.2 [+0.3, +2.1]``, in percentage points."""
    if found is None:
        return Cell(NONE)
    text, strong = _signed(found.mean), False
    if found.low is not None and found.high is not None:
        # What is printed decides: an end that rounds to zero does not leave zero out.
        strong = round(1000 * found.low) > 0 or round(1000 * found.high) < 0
        text += f" [{_signed(found.low)}, {_signed(found.high)}]"
    return Cell(text, strong=strong)


def _signed(share: float) -> str:
    # Adding zero turns the minus zero that rounding may leave into zero.
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """Return ``1 seed``, ``3 seeds``."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def several(names: Iterable[str], *, limit: int = 6) -> str:
    """Return ``a, b and c``; beyond ``limit`` names, how many more there are."""
    found = list(names)
    if len(found) > limit:
        found = [*found[: limit - 1], f"{len(found) - limit + 1} more"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def metric_label(rows: Iterable[Row]) -> str:
    """Return what the metric column holds: accuracy, or each task's own metric."""
    names = sorted({row.metric_name for row in rows})
    return "accuracy" if names == ["accuracy"] else "score"


def unique(values: Iterable[float]) -> list[float]:
    """Return the values, sorted, each once."""
    return sorted(set(values))


def error_bars(means: Iterable[Mean]) -> str:
    """Return what the error bars of a figure are and the N behind its means."""
    found = list(means)
    if all(mean.sd is None for mean in found):
        return f"No error bars: {runs_behind(found)}"
    return f"Error bars: standard deviation over runs; {runs_behind(found)}"


def tasks_behind(means: Iterable[Mean]) -> list[str]:
    """Return the tasks that means are over: not every task with results is in every mean."""
    return sorted({task for mean in means for task in mean.tasks})


def runs_behind(means: Iterable[Mean]) -> str:
    """Return the range of N over means: ``N = 3 runs each`` or ``N = 1 to 3 runs``."""
    counts = unique(mean.n for mean in means)
    if not counts:
        return "no runs"
    if len(counts) == 1:
        return f"N = {count(int(counts[0]), 'run')} each"
    return f"N = {counts[0]:.0f} to {counts[-1]:.0f} runs"
