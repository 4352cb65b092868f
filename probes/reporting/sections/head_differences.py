"""Differences of the heads from lp, every pre-training run a mark: a mean of two runs shows as one of two."""

from __future__ import annotations

from collections.abc import Sequence

from probes.reporting.averages import Score, noise_key
from probes.reporting.inference import Estimate
from probes.reporting.paired import BASELINE, difference, differences
from probes.reporting.records import INTERVAL, Figure, Panel, Point, Series
from probes.reporting.sections.noise import NOISE_AXIS
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import behind, count, unique


def by_run(study: Study) -> Figure:
    """Return the differences from the baseline, every pre-training run a mark."""
    panels = []
    found = study.known(study.main)
    for family in dict.fromkeys(score.family for score in found):
        levels = unique(noise_key(score) for score in of_family(found, family))
        for domain, title in DOMAINS:
            within = in_domain(of_family(found, family), domain)
            series = tuple(
                Series(label=head, points=marks_of, slot=study.head_slot(head))
                for head in study.heads
                if head != BASELINE and (marks_of := _changes(within, head, levels))
            )
            if series:
                panels.append(differences_panel(study, study.title(family, title), BASELINE, series, levels))
    return Figure(
        name="heads-differences",
        title=f"Difference from {BASELINE}, run by run",
        paper="Table 2",
        caption=(
            "Small marks: one pre-training run each, its mean over tasks and seeds of the head. Large mark "
            "and bar: their mean with its 95 % Student t interval; a bar that ends at the edge goes on "
            f"beyond it, and one run has none. {behind(panels, 'pre-training run')}."
        ),
        panels=tuple(panels),
        bars=INTERVAL,
    )


def _changes(found: list[Score], head: str, levels: list[float]) -> tuple[Point, ...]:
    found_points = []
    for level in levels:
        of_level = [score for score in found if noise_key(score) == level]
        change = difference(of_level, head)
        if change:
            seeds = [
                len({score.seed for score in of_level if (score.encoder_hash, score.head) == (encoder, head)})
                for encoder in differences(of_level, head)
            ]
            found_points.append(difference_point(level, change, (min(seeds), max(seeds))))
    return tuple(found_points)


def differences_panel(
    study: Study, title: str, base: str, series: Sequence[Series], levels: Sequence[float]
) -> Panel:
    """Return a panel of differences from ``base``, in percentage points, over noise levels in percent."""
    name = f"{study.metric.capitalize()} minus {base} (points)"
    marks = (
        f"{one.label} at {point.x:g} % noise {point.y:+.1f}"
        + (f", {count(len(point.runs), 'run')}" if point.runs else "")
        for one in series
        for point in one.points
    )
    return Panel(
        title=title,
        x_label=NOISE_AXIS,
        y_label=name,
        series=tuple(series),
        x_ticks=tuple(levels),
        differences=True,
        alt=f"{name}: {'; '.join(marks)}.",
    )


def difference_point(level: float, found: Estimate, seeds: tuple[int, int] = (1, 1)) -> Point:
    """Return the mark of a difference of shares at a noise level in percent, with its interval as the bar."""
    return Point(
        x=level,
        y=100 * found.mean,
        spread=None if found.high is None else 100 * (found.high - found.mean),
        # Of two groups that are not paired, no run has a difference of its own.
        runs=() if found.against else tuple(100 * value for value in found.values),
        seeds=seeds,
    )
