"""Heads compared on every encoder (Tables 2 and 3), with paired differences from lp."""

from __future__ import annotations

from typing import NamedTuple

from probes.reporting.averages import Mean, Score, means, noise_key
from probes.reporting.comparable import balanced, comparable
from probes.reporting.paired import BASELINE, METHOD, Asked, compare, counted, marks
from probes.reporting.records import Cell, Figure, Gap, Section, Table, cells
from probes.reporting.sections import calibration
from probes.reporting.sections.head_differences import by_run
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import NONE, percent, points, several
from probes.results.row import Domain

COMMAND = "python -m probes.run --plugin lp,mlp,nmtune --seeds 3"
ENCODER_COMMAND = "python -m probes.run --encoder timm:tf_efficientnet_b3.ns_jft_in1k --plugin lp,mlp,nmtune"


class Line(NamedTuple):
    """Encoders that are read together, a line a head.

    Attributes:
        name: What the group is called.
        measured: All scores of the group.
        compared: Those that its means and differences are over.
        means: The mean of each head, by domain.
        heads: Heads with a mean in any domain.
    """

    name: str
    measured: list[Score]
    compared: list[Score]
    means: dict[Domain, dict[str, Mean]]
    heads: list[str]


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Figure | Table | Gap] = []
    if BASELINE in study.heads and len(study.heads) > 1:
        figure = by_run(study)
        items += [figure, _table(study)] if figure.panels else [_table(study)]
    else:
        items.append(
            Gap(
                title=f"Differences of the heads from {BASELINE}",
                paper="Table 2",
                reason=f"the results hold {several(study.heads)} only",
                command=COMMAND,
            )
        )
    if not any(score.noise is None for score in study.main):
        items.append(
            Gap(
                title="Heads on public encoders whose pre-training noise is not known",
                paper="Tables 2 and 3",
                reason="all encoders here come from pre-training runs with known noise",
                command=ENCODER_COMMAND,
            )
        )
    items += calibration.tables(study)
    return Section(name="heads", title="Heads compared", items=tuple(items))


def _table(study: Study) -> Table:
    lines = _lines(study)
    asked = [
        Asked(in_domain(line.compared, domain), head)
        for line in lines
        for head in line.heads
        if head != BASELINE
        for domain, _ in DOMAINS
    ]
    judged = compare(asked)
    changes = iter(judged)
    rows = []
    for line in lines:
        # Over several levels or shares a deviation would be of those more than of the runs.
        mixed = len({noise_key(score) for score in line.compared}) > 1 or _several_shares(line.compared)
        for head in line.heads:
            entries: list[str | Cell] = [line.name, head]
            for domain, _ in DOMAINS:
                mean = line.means[domain].get(head)
                change = None if head == BASELINE else next(changes)
                entries += [
                    percent(mean and (mean.without_spread() if mixed else mean)),
                    "baseline" if head == BASELINE else points(change),
                    NONE if change is None else str(change.found.n),
                ]
            rows.append(cells(*entries))
    return Table(
        name="heads-table",
        title=f"{study.metric.capitalize()} of the heads, and their difference from {BASELINE}",
        paper="Table 2",
        caption=(
            f"{study.metric.capitalize()} in percent: mean over tasks ± standard deviation over pre-training "
            f"runs, of one run (standard deviation over seeds of the head); differences in percentage "
            f"points. {METHOD} {marks(counted(judged))} Out of domain, a pair's "
            f"value is its mean over the test sets of its task. Lines over several levels or shares of the "
            f"training data carry no deviation, are over the tasks and shares that every encoder and seed "
            f"has, and leave out heads that lack a case of {BASELINE}'s." + _left_out(study, lines)
        ),
        header=(
            "Encoders",
            "Head",
            *(
                name
                for domain in ("ID", "OOD")
                for name in (f"{domain} {study.metric}", f"{domain} minus {BASELINE}", f"{domain} runs")
            ),
        ),
        rows=tuple(rows),
        text_columns=2,
        grouped=True,
    )


def _left_out(study: Study, lines: list[Line]) -> str:
    """Name the heads and tasks of each group that its lines leave out."""
    left_out = []
    for line in lines:
        heads = [
            head for head in study.heads if head in {score.head for score in line.measured} - set(line.heads)
        ]
        tasks = sorted({score.task for score in line.measured} - {score.task for score in line.compared})
        # Where no head is left, no task is.
        absent = heads + (tasks if line.heads else [])
        left_out += [f"{several(absent)} ({line.name})"] if absent else []
    return f" Left out: {several(left_out, limit=20)}." if left_out else ""


def _line(study: Study, name: str, measured: list[Score], compared: list[Score]) -> Line:
    by = {domain: means(in_domain(compared, domain), lambda score: score.head) for domain, _ in DOMAINS}
    heads = [head for head in study.heads if any(head in values for values in by.values())]
    return Line(name, measured, compared, by, heads)


def _lines(study: Study) -> list[Line]:
    """Return the encoders by level, then each family over all its levels, and over all shares of the data."""
    lines = []
    for family in study.families:
        found = of_family(study.main, family)
        levels = sorted({noise_key(score) for score in study.known(found)})
        for level in levels:
            of_level = [score for score in found if noise_key(score) == level]
            lines.append(_line(study, f"{family}, {level:g} % noise", of_level, of_level))
        if len(levels) != 1:
            name = f"{family}, all levels" if levels else family
            lines.append(_line(study, name, found, _compared(found)))
        everything = of_family(study.of_main_heads(study.scores), family)
        clean = [score for score in everything if score.downstream_noise == 0]
        if _several_shares(clean):
            lines.append(_line(study, f"{family}, all levels and shares", clean, _compared(clean)))
    return lines


def _several_shares(found: list[Score]) -> bool:
    """Whether a task was run at several shares of its data; two tasks may well have one each."""
    return len({(score.task, score.fraction) for score in found}) > len({score.task for score in found})


def _compared(found: list[Score]) -> list[Score]:
    """Return the scores of the heads that have every case of the baseline that all its runs share.

    A mean over some levels or shares would not compare with a mean over all of them.
    """
    baseline = [score for score in found if score.head == BASELINE]
    return comparable(found, balanced(baseline)) if baseline else balanced(found)
