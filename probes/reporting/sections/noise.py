"""Accuracy against pre-training noise: by head (Fig. 1) and by share of the training data (Fig. 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from probes.reporting.averages import Mean, means, noise_key
from probes.reporting.records import Figure, Gap, Panel, Point, Section, Series
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import error_bars, several, tasks_behind
from probes.results.row import Domain

Name = TypeVar("Name", bound=Hashable)

NOISE_AXIS = "Pre-training noise (% of labels)"
NOISE_COMMAND = "python slurm/launch.py sweep --noise 0 0.05 0.1 0.2 0.3 --plugins lp mlp nmtune"
FRACTION_COMMAND = "python -m probes.run --plugin lp,mlp,nmtune --fractions 0.1 0.25 0.5 0.75 1.0"


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Figure | Gap] = []
    if study.ladders:
        items = [by_head(study), by_fraction(study)]
    else:
        items = [no_ladder("Accuracy against pre-training noise", "Fig. 1 and 2")]
    return Section(
        name="noise",
        title="Accuracy against pre-training noise",
        intro="The noise is the share of pre-training labels that were changed, counted, not estimated.",
        items=tuple(items),
    )


def no_ladder(title: str, paper: str = "") -> Gap:
    """Return the gap of what needs two noise levels."""
    return Gap(
        title=title,
        paper=paper,
        reason="the results have no two encoders that differ in known pre-training noise",
        command=NOISE_COMMAND,
    )


def by_head(study: Study) -> Figure | Gap:
    """Return one panel a domain (and family), one line a head."""
    panels: list[Panel] = []
    behind: dict[str, dict[Domain, list[Mean]]] = defaultdict(dict)
    for family, levels in study.ladders.items():
        for domain, title in DOMAINS:
            found = in_domain(of_family(study.known(study.main), family), domain)
            by = means(found, lambda score: (score.head, noise_key(score)))
            if not by:
                continue
            behind[family][domain] = list(by.values())
            series = head_lines(study, by, levels)
            panels.append(panel(study, study.title(family, title), series, levels, f"{family}-{domain}"))
    if not panels:
        return Gap(
            title="Accuracy against pre-training noise, by head",
            paper="Fig. 1",
            reason="no encoder of known noise has results of a head's main setting on clean labels",
            command=NOISE_COMMAND,
        )
    return Figure(
        name="accuracy-noise",
        title=f"{study.metric.capitalize()} against pre-training noise, by head",
        paper="Fig. 1",
        caption=f"{conditions(study, behind)} {error_bars(_every(behind))}.",
        panels=tuple(panels),
    )


def by_fraction(study: Study) -> Figure | Gap:
    """Return one panel a head and domain, one line a share of the training data."""
    if len(study.fractions) < 2:
        return Gap(
            title="Accuracy against noise at several shares of the training data",
            paper="Fig. 1 and 2",
            reason=f"all results use {100 * study.fractions[0]:g} % of the training data",
            command=FRACTION_COMMAND,
        )
    panels: list[Panel] = []
    behind: list[Mean] = []
    clean = [score for score in study.known(study.of_main_heads(study.scores)) if not score.downstream_noise]
    for family, levels in study.ladders.items():
        for head in study.heads:
            for domain, title in DOMAINS:
                found = [score for score in in_domain(of_family(clean, family), domain) if score.head == head]
                by = means(found, lambda score: (score.fraction, noise_key(score)))
                # One share is a line of the figure by head.
                if len({fraction for fraction, _ in by}) < 2:
                    continue
                behind += by.values()
                series = [
                    Series(
                        label=f"{100 * fraction:g} %",
                        points=line(by, fraction, levels),
                        slot=slot,
                        scale="ordered",
                        of=len(study.fractions),
                    )
                    for slot, fraction in enumerate(study.fractions)
                    if any(key[0] == fraction for key in by)
                ]
                name = study.title(family, f"{head}, {title.lower()}")
                panels.append(panel(study, name, series, levels, f"{family}-{domain}"))
    if not panels:
        return Gap(
            title="Accuracy against noise at several shares of the training data",
            paper="Fig. 1 and 2",
            reason="no head was run on the same tasks at two shares of their training data",
            command=FRACTION_COMMAND,
        )
    return Figure(
        name="accuracy-fractions",
        title=f"{study.metric.capitalize()} against pre-training noise, by share of the training data",
        paper="Fig. 1 and 2",
        caption=f"Labels name the share of the task's training data. {error_bars(behind)}.",
        panels=tuple(panels),
    )


def head_lines(
    study: Study, by: Mapping[tuple[str, float], Mean], levels: Sequence[float], *, least: int = 1
) -> tuple[Series, ...]:
    """Return the line of each head that has ``least`` of the levels or more, which are in percent."""
    return tuple(
        Series(label=head, points=line(by, head, levels), slot=study.head_slot(head))
        for head in study.heads
        if sum(key[0] == head for key in by) >= least
    )


def line(by: Mapping[tuple[Name, float], Mean], name: Name, levels: Sequence[float]) -> tuple[Point, ...]:
    """Return the points of one line over the levels it has, in percent."""
    found = [(level, by[name, level]) for level in levels if (name, level) in by]
    return tuple(point(level, mean) for level, mean in found)


def point(x: float, mean: Mean, scale: float = 100.0, label: str = "") -> Point:
    """Return the point of a mean, as percent unless ``scale`` says otherwise."""
    return Point(
        x=x,
        y=scale * mean.value,
        spread=None if mean.sd is None else scale * mean.sd,
        seed_spread=None if mean.seed_sd is None else scale * mean.seed_sd,
        runs=tuple(scale * run for run in mean.runs),
        seeds=mean.seeds,
        label=label,
    )


def conditions(study: Study, behind: Mapping[str, Mapping[Domain, Sequence[Mean]]]) -> str:
    """Return what a figure of the main scores averages over, from its means by family and domain."""
    sentences = {family: _conditions(study, family, means) for family, means in behind.items()}
    if len(set(sentences.values())) == 1:
        return next(iter(sentences.values()))
    return " ".join(f"{family}: {sentence}" for family, sentence in sentences.items())


def _conditions(study: Study, family: str, behind: Mapping[Domain, Sequence[Mean]]) -> str:
    averaged = {domain: set(tasks_behind(means)) for domain, means in behind.items()}
    outside = {
        dataset
        for score in in_domain(of_family(study.known(study.main), family), "ood")
        if score.task in averaged.get("ood", ())
        for dataset in score.datasets
    }
    text = f"Heads fitted on {study.fitted_on(family, set.union(*averaged.values()))}."
    return text + (f" Out-of-domain: mean over {several(sorted(outside))}." if outside else "")


def _every(behind: Mapping[str, Mapping[Domain, Sequence[Mean]]]) -> list[Mean]:
    return [mean for domains in behind.values() for means in domains.values() for mean in means]


def describe(series: Sequence[Series], x: str) -> str:
    """Return what lines of percentages show, from the first to the last point of each."""
    parts = []
    for one in series:
        first, last = one.points[0], one.points[-1]
        start = f"{one.label}: {first.y:.1f} % at {first.x:g} % {x}"
        parts.append(start if first is last else f"{start}, {last.y:.1f} % at {last.x:g} %")
    return "; ".join(parts) + "."


def panel(
    study: Study, title: str, series: Sequence[Series], levels: Sequence[float], group: str = ""
) -> Panel:
    """Return the panel of lines over pre-training noise, in percent."""
    return Panel(
        title=title,
        x_label=NOISE_AXIS,
        y_label=f"{study.metric.capitalize()} (%)",
        series=tuple(series),
        x_ticks=tuple(levels),
        group=group,
        alt=describe(series, "noise"),
    )
