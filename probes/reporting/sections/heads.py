"""Heads compared on every encoder (Tables 2 and 3), with paired differences from lp."""

from __future__ import annotations

from typing import NamedTuple

from probes.reporting.averages import Score, means, noise_key
from probes.reporting.comparable import balanced, comparable
from probes.reporting.paired import BASELINE, METHOD, difference
from probes.reporting.records import Cell, Gap, Section, Table, cells
from probes.reporting.study import Study, in_domain, of_family
from probes.reporting.wording import NONE, percent, points, several

COMMAND = "python -m probes.run --plugin lp,mlp,nmtune --seeds 3"
ENCODER_COMMAND = "python -m probes.run --encoder timm:tf_efficientnet_b3.ns_jft_in1k --plugin lp,mlp,nmtune"


class Line(NamedTuple):
    """A group of encoders: a line a head.

    Attributes:
        name: What the group is called.
        measured: All scores of the group.
        compared: Those that its means and differences are over.
    """

    name: str
    measured: list[Score]
    compared: list[Score]


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Table | Gap] = []
    if BASELINE in study.heads and len(study.heads) > 1:
        items.append(_table(study))
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
    return Section(name="heads", title="Heads compared", items=tuple(items))


def _table(study: Study) -> Table:
    rows = []
    left_out: list[str] = []
    for name, measured, found in _groups(study):
        shown: set[str] = set()
        # Over several levels or shares a deviation would be of those more than of the runs.
        mixed = len({noise_key(score) for score in found}) > 1 or _several_shares(found)
        by_domain = {domain: in_domain(found, domain) for domain in ("id", "ood")}
        by = {domain: means(members, lambda score: score.head) for domain, members in by_domain.items()}
        for head in study.heads:
            if not any(head in values for values in by.values()):
                continue
            shown.add(head)
            entries: list[str | Cell] = [name, head]
            for domain in ("id", "ood"):
                mean = by[domain].get(head)
                change = None if head == BASELINE else difference(by_domain[domain], head)
                entries += [
                    percent(mean and (mean._replace(sd=None) if mixed else mean)),
                    "baseline" if head == BASELINE else points(change),
                    NONE if change is None else str(change.n),
                ]
            rows.append(cells(entries))
        heads = [head for head in study.heads if head in {score.head for score in measured} - shown]
        tasks = sorted({score.task for score in measured} - {score.task for score in found})
        # Where no head is left, no task is.
        absent = heads + (tasks if shown else [])
        left_out += [f"{several(absent)} ({name})"] if absent else []
    return Table(
        name="heads-table",
        title=f"{study.metric.capitalize()} of the heads, and their difference from {BASELINE}",
        paper="Table 2",
        caption=(
            f"{study.metric.capitalize()} in percent: mean over tasks ± standard deviation over runs; "
            f"differences in percentage points. {METHOD} N counts pairs. Out of domain, a pair's value is "
            f"its mean over the test sets of its task. Lines over several levels or shares of the training "
            f"data carry no deviation, are over the tasks and shares that every encoder and seed has, and "
            f"leave out heads that lack a case of {BASELINE}'s."
            + (f" Left out: {several(left_out, limit=20)}." if left_out else "")
        ),
        header=(
            "Encoders",
            "Head",
            f"ID {study.metric}",
            f"minus {BASELINE}",
            "N",
            f"OOD {study.metric}",
            f"minus {BASELINE}",
            "N",
        ),
        rows=tuple(rows),
        text_columns=2,
        grouped=True,
    )


def _groups(study: Study) -> list[Line]:
    """Return the encoders by level, then each family over all its levels, and over all shares of the data."""
    lines: list[Line] = []
    for family in dict.fromkeys(score.family for score in study.main):
        found = of_family(study.main, family)
        levels = sorted({noise_key(score) for score in study.known(found)})
        for level in levels:
            of_level = [score for score in found if noise_key(score) == level]
            lines.append(Line(f"{family}, {level:g} % noise", of_level, of_level))
        if len(levels) != 1:
            lines.append(Line(f"{family}, all levels" if levels else family, found, _compared(found)))
        everything = of_family(study.of_main_heads(study.scores), family)
        clean = [score for score in everything if score.downstream_noise == 0]
        if _several_shares(clean):
            lines.append(Line(f"{family}, all levels and shares", clean, _compared(clean)))
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
