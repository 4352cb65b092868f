"""How the encoders came to be: the curves of their pre-training, from the run folders that results name."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from nml.curves import Curves, Value, read_curves, thinned, time_shares
from nml.errors import UserError
from probes.reporting.averages import percentage
from probes.reporting.records import Figure, Panel, Point, Section, Series, Table, cells
from probes.reporting.study import Study
from probes.reporting.wording import NONE, count, several, unique

# Points of a curve: enough for the width of a panel, few enough for a page with dozens of curves.
_POINTS = 150
# A loss that falls by more than this is drawn on a logarithmic axis.
_LOG_RATIO = 10.0


@dataclasses.dataclass(frozen=True)
class Run:
    """A pre-training run behind results.

    Attributes:
        family: Encoders that differ in noise and seed only.
        noise: Pre-training noise in percent; None where it is not known.
        curves: What its metrics say.
    """

    family: str
    noise: float | None
    curves: Curves


def section(study: Study) -> Section:
    """Return the section."""
    runs, missing = find_runs(study)
    families = list(dict.fromkeys(run.family for run in runs))
    items: list[Figure | Table] = []
    for number, family in enumerate(families):
        members = [run for run in runs if run.family == family]
        items.append(_figure(members, family if len(families) > 1 else "", f"pretraining-{number}"))
    if runs:
        items.append(_time_table(runs))
    return Section(name="pretraining", title="Pre-training", intro=_intro(runs, missing), items=tuple(items))


def _intro(runs: Sequence[Run], missing: Sequence[str]) -> str:
    gone = f"of {several(list(missing))} no metrics are left" if missing else ""
    if not runs:
        return f"No curves: {gone or 'no encoder is from a run of this project'}."
    told = "Of the runs behind the results, as their folders tell it now"
    return f"{told}; {gone}." if gone else f"{told}."


def find_runs(study: Study) -> tuple[list[Run], list[str]]:
    """Return the runs behind the results that are there, in order of noise, and the folders that are not."""
    runs, missing = [], []
    for row in {row.run_path: row for row in study.rows if row.run_path}.values():
        try:
            curves = read_curves(Path(str(row.run_path)))
        except UserError:
            missing.append(str(row.run_path))
            continue
        noise = None if row.noise_ratio is None else percentage(row.noise_ratio)
        runs.append(Run(study.selection.family[row.encoder_hash], noise, curves))
    runs.sort(key=lambda run: (run.noise is None, run.noise or 0.0, run.curves.name))
    return runs, sorted(missing)


def _figure(runs: Sequence[Run], family: str, name: str) -> Figure:
    levels = unique(run.noise for run in runs if run.noise is not None)
    shown = count(len(runs), "run")
    panels = [
        _panel("Training loss", "Loss", runs, levels, lambda curves: curves.loss),
        _panel("Validation", "Top-1 accuracy (%)", runs, levels, lambda curves: _times(100, curves.top1)),
        _panel(
            "Learning rate", "Learning rate (1/1000)", runs, levels, lambda curves: _times(1000, curves.lr)
        ),
        _panel("Throughput", "Samples a second", runs, levels, _throughput),
    ]
    return Figure(
        name=name,
        title=f"{family}: pre-training by noise level" if family else "Pre-training by noise level",
        caption=(
            f"{shown}, a curve each; those of one noise level share a colour. Of longer runs a point is the "
            f"mean of neighbouring steps. The loss is that of the labels that were trained on, wrong ones "
            f"included; validation is on clean ones."
        ),
        panels=tuple(panel for panel in panels if panel.series),
    )


def _panel(
    title: str,
    y_label: str,
    runs: Sequence[Run],
    levels: Sequence[float],
    values_of: Callable[[Curves], Sequence[Value]],
) -> Panel:
    series = []
    named: set[float | None] = set()
    for run in runs:
        values = thinned(values_of(run.curves), _POINTS)
        if not values:
            continue
        # Repetitions of a level are one colour, and named once.
        label = "" if run.noise in named else NONE if run.noise is None else f"{run.noise:g} %"
        named.add(run.noise)
        slot = len(levels) if run.noise is None else levels.index(run.noise)
        points = tuple(Point(x=value.epoch, y=value.value) for value in values)
        of = len(levels) + any(one.noise is None for one in runs)
        series.append(Series(label=label, points=points, slot=slot, scale="ordered", of=of))
    heights = [point.y for one in series for point in one.points]
    ends = "; ".join(f"{one.label} ends at {one.points[-1].y:.3g}" for one in series if one.label)
    return Panel(
        title=title,
        x_label="Epoch",
        y_label=y_label,
        series=tuple(series),
        kind="curve",
        log_y=title == "Training loss" and min(heights, default=0) > 0 and _spread(heights) > _LOG_RATIO,
        alt=f"{y_label} over the epochs. {ends}.",
    )


def _spread(heights: Sequence[float]) -> float:
    return max(heights) / min(heights)


def _throughput(curves: Curves) -> Sequence[Value]:
    # From step to step it is mostly noise, in which runs of one speed could not be told from others.
    return thinned(curves.samples_per_s, _POINTS // 5)


def _times(factor: float, values: Sequence[Value]) -> list[Value]:
    return [Value(value.epoch, factor * value.value) for value in values]


def _time_table(runs: Sequence[Run]) -> Table:
    shares = time_shares([run.curves for run in runs])
    rows = []
    for number, run in enumerate(runs):
        curves = run.curves
        pace = [value.value for value in curves.samples_per_s]
        rows.append(
            cells(
                curves.name,
                NONE if run.noise is None else f"{run.noise:g} %",
                f"{curves.steps:,}" if curves.complete else f"{curves.steps:,}, not finished",
                f"{curves.wall_s:,.0f}",
                f"{statistics.median(pace):,.0f}" if pace else NONE,
                f"{100 * curves.top1[-1].value:.1f}" if curves.top1 else NONE,
                *(f"{100 * of_runs[number]:.1f}" for of_runs in shares.values()),
            )
        )
    return Table(
        name="pretraining-time",
        title="Where the time of pre-training went",
        caption=(
            "Of each run's time in percent: training that counted (goodput), and what was lost, by cause, "
            "with the time between attempts. Samples a second: the median step; top-1: the last validation."
        ),
        header=(
            *("Run", "Noise", "Steps", "Time (s)", "Samples a second", "Top-1 (%)"),
            *(cause.capitalize() for cause in shares),
        ),
        rows=tuple(rows),
    )
