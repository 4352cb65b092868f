"""Numbers as text, the same way in every table and caption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from probes.reporting.averages import Mean
from probes.reporting.inference import Judged, estimate
from probes.reporting.records import Cell, Panel
from probes.results import Row

NONE = "–"


def percent(mean: Mean | None) -> Cell:
    """Return a mean of shares in percent.

    ``93.4 ± 0.5`` has the deviation over pre-training runs, ``93.4 (0.5)`` that over seeds of the head, where
    there is one run.
    """
    if mean is None:
        return Cell(NONE)
    text = f"{100 * mean.value:.1f}"
    if mean.sd is not None:
        text += f" ± {100 * mean.sd:.1f}"
    elif mean.seed_sd is not None:
        text += f" ({100 * mean.seed_sd:.1f})"
    return Cell(text, numbers=_numbers(mean, 100))


def number(mean: Mean | None) -> Cell:
    """Return a mean with two decimals."""
    if mean is None or math.isnan(mean.value):
        return Cell(NONE)
    return Cell(f"{mean.value:.2f}", numbers=_numbers(mean, 1))


def number_cell(value: float | None, digits: int) -> Cell:
    """Return a number with so many decimals."""
    if value is None:
        return Cell(NONE)
    return Cell(f"{value:.{digits}f}".replace("-", "−"), numbers=(("", value),))


def _numbers(mean: Mean, scale: float) -> tuple[tuple[str, float | None], ...]:
    # A mean that carries no deviation is over levels or shares, and has no interval of runs either.
    low, high = estimate(mean.runs)[1:3] if mean.sd is not None else (None, None)
    scaled = {
        "": mean.value,
        "SD over runs": mean.sd,
        "SD over seeds": mean.seed_sd,
        "low": low,
        "high": high,
    }
    return (
        *((name, None if value is None else scale * value) for name, value in scaled.items()),
        ("runs", mean.n),
        ("seeds", mean.seeds[0]),
    )


def points(judged: Judged | None) -> Cell:
    """Return a difference of shares as ``+1.2 [+0.3, +2.1]``, in percentage points."""
    return signed(judged, 100, 1)


def signed(judged: Judged | None, scale: float, digits: int) -> Cell:
    """Return a difference with its interval, set off if it is marked.

    Args:
        judged: The difference; None for a dash.
        scale: Units of the text in one of the value's.
        digits: Decimals.
    """
    if judged is None:
        return Cell(NONE)
    found, strong = judged.found, False
    if found.low is not None and found.high is not None:
        # What is printed decides: an end that rounds to zero does not leave zero out.
        strong = judged.marked and round(scale * min(abs(found.low), abs(found.high)), digits) > 0
    mean, low, high = (end if end is None else scale * end for end in found[:3])
    return Cell(
        with_interval(scale * found.mean, low, high, digits),
        strong=strong,
        numbers=(
            ("", mean),
            ("low", low),
            ("high", high),
            ("p", found.p),
            ("p, Holm", judged.p_holm),
            ("runs", found.n),
            *((f"run {place}", scale * value) for place, value in enumerate(found.values, 1)),
        ),
    )


def with_interval(mean: float, low: float | None, high: float | None, digits: int) -> str:
    """Return ``+1.2 [+0.3, +2.1]``, with a true minus sign."""

    def shown(value: float) -> str:
        # Adding zero turns the minus zero that rounding may leave into zero.
        return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")

    return shown(mean) if low is None or high is None else f"{shown(mean)} [{shown(low)}, {shown(high)}]"


def probability(p: float | None) -> Cell:
    """Return a p value with two significant digits."""
    if p is None:
        return Cell(NONE)
    return Cell("< 0.001" if p < 0.001 else f"{p:.2g}", numbers=(("", p),))


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


_METRICS = {
    "accuracy": "accuracy",
    "map": "mean average precision",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def metric_label(rows: Iterable[Row]) -> str:
    """Return what the metric column holds: the one metric of all tasks, or score where each has its own."""
    names = {row.metric_name for row in rows}
    return _METRICS.get(names.pop(), "score") if len(names) == 1 else "score"


def unique(values: Iterable[float]) -> list[float]:
    """Return the values, sorted, each once."""
    return sorted(set(values))


def error_bars(means: Iterable[Mean], *, shows_runs: bool = True) -> str:
    """Return what the error bars of a figure are, what its small marks are, and the N behind its means."""
    found = list(means)
    if any(mean.sd is not None for mean in found):
        bars = "Error bars: standard deviation over pre-training runs"
        bars += ", each of which is a small mark" if shows_runs else ""
    elif any(mean.seed_sd is not None for mean in found):
        bars = "Error bars: standard deviation over seeds of the head on one encoder"
    else:
        bars = "No error bars"
    return f"{bars}; {runs_behind(found)}"


def tasks_behind(means: Iterable[Mean]) -> list[str]:
    """Return the tasks that means are over: not every task with results is in every mean."""
    return sorted({task for mean in means for task in mean.tasks})


def runs_behind(means: Iterable[Mean]) -> str:
    """Return the range of N over means: ``N = 3 pre-training runs each, 2 to 3 seeds of the head a run``."""
    found = list(means)
    if not found:
        return "no runs"
    runs = [mean.n for mean in found]
    seeds = [end for mean in found for end in mean.seeds]
    return (
        f"N = {_range(runs, 'pre-training run')}{' each' if min(runs) == max(runs) else ''}, "
        f"{_range(seeds, 'seed')} of the head a run"
    )


def behind(panels: Iterable[Panel], noun: str) -> str:
    """Return the range of N over marks whose values are drawn beside them: ``N = 2 to 3 ladders each``."""
    counts = [
        len(point.runs)
        for panel in panels
        for series in panel.series
        for point in series.points
        if point.runs
    ]
    return f"N = {_range(counts, noun)} each" if counts else f"N = 0 {noun}s"


def _range(counts: Sequence[int], noun: str) -> str:
    low, high = min(counts), max(counts)
    return count(high, noun) if low == high else f"{low} to {count(high, noun)}"
