"""Settings of heads beside the main ones, and heads beside lp, mlp and nmtune (Tables 15 and 16)."""

from __future__ import annotations

import re
from collections import defaultdict

from plugins.registry import HEADS
from probes.reporting.averages import Score, means
from probes.reporting.comparable import balanced, case, comparable
from probes.reporting.paired import BASELINE, METHOD, Asked, compare, counted, marks
from probes.reporting.records import Cell, Gap, Section, Table, cells
from probes.reporting.study import Study, in_domain, of_family
from probes.reporting.variants import FIRST, NETWORK, TERMS
from probes.reporting.wording import percent, points, runs_behind, several, unique


def section(study: Study) -> Section:
    """Return the section."""
    labels = sorted({score.head for score in study.scores} - set(FIRST))
    items: list[Table | Gap] = [
        table for family in _families(study, labels) for table in _tables(study, family, labels)
    ]
    if not any(TERMS.search(label) for label in labels):
        items.append(_gap("Each loss term of nmtune alone and in pairs", "Table 15", TERMS))
    if not any(NETWORK.search(label) for label in labels):
        items.append(_gap("Depth and activation of the network", "Table 16", NETWORK))
    return Section(name="ablations", title="Ablations and further heads", items=tuple(items))


def _families(study: Study, labels: list[str]) -> list[str]:
    return list(dict.fromkeys(score.family for score in study.scores if score.head in labels))


def _tables(study: Study, family: str, labels: list[str]) -> list[Table | Gap]:
    """Return a table for every set of cases: means over unlike ones do not belong side by side."""
    cases: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for score in of_family(study.scores, family):
        if score.head in labels:
            cases[score.head].add(case(score))
    alike: dict[frozenset[tuple[object, ...]], list[str]] = defaultdict(list)
    for label in labels:
        if label in cases:
            alike[frozenset(cases[label])].append(label)
    first = f"ablations-{list(study.selection.family.values()).index(family)}"
    return [
        _table(study, family, members, name=f"{first}-{number}" if number else first)
        for number, members in enumerate(alike.values())
    ]


def _table(study: Study, family: str, labels: list[str], *, name: str) -> Table | Gap:
    found = of_family(study.scores, family)
    compared = _compared(found, labels)
    if not compared:
        return Gap(
            title=f"{several(labels)} on {family}",
            paper="Tables 15 and 16",
            reason="no task was run with every encoder and seed, so that there is nothing to average over",
            command=f"python -m probes.run --plugin {','.join(FIRST)},NAME",
        )
    by = {domain: means(in_domain(compared, domain), lambda score: score.head) for domain in ("id", "ood")}
    present = {score.head for score in compared}
    heads = [head for head in (*FIRST, *labels) if head in present]
    judged = compare(
        [
            Asked(in_domain(compared, domain), head)
            for head in heads
            if head != BASELINE
            for domain in ("id", "ood")
        ]
    )
    changes = iter(judged)
    rows = []
    for head in heads:
        entries: list[str | Cell] = [head]
        for domain in ("id", "ood"):
            mean = by[domain].get(head)
            # A deviation would be of noise levels and shares of the data more than of runs.
            entries.append(percent(mean and mean.without_spread()))
            entries.append("baseline" if head == BASELINE else points(next(changes)))
        rows.append(cells(*entries))
    metric = study.metric
    return Table(
        name=name,
        title=f"Further heads and settings on {family}",
        paper="Tables 15 and 16",
        caption=(
            f"{metric.capitalize()} in percent, mean over {_shares(compared)}; "
            f"{runs_behind(by['id'].values())}. Only what every run and head here has."
            f"{_left_out(found, labels, compared)} {METHOD} {marks(counted(judged))}"
        ),
        header=("Head", f"ID {metric}", f"ID minus {BASELINE}", f"OOD {metric}", f"OOD minus {BASELINE}"),
        rows=tuple(rows),
    )


def _compared(found: list[Score], labels: list[str]) -> list[Score]:
    """Return the scores of the further heads, which have the same cases, and of the heads to compare with.

    A reference over cases that the further heads lack would be a mean over something else, and so would a
    difference over fewer cases than the means beside it.
    """
    further = [score for score in found if score.head in labels]
    common = comparable(further, [score for score in further if score.head == labels[0]])
    paired = {case(score) for score in found if score.head == BASELINE}
    common = [score for score in common if case(score) in paired] or common
    return comparable(found, balanced(common))


def _left_out(found: list[Score], labels: list[str], compared: list[Score]) -> str:
    """Name the heads and tasks that the table has results of, but not over all of its runs."""
    heads = [head for head in (*FIRST, *labels) if head in {score.head for score in found}]
    measured = {score.task for score in found if score.head in labels}
    absent = [head for head in heads if head not in {score.head for score in compared}]
    absent += sorted(measured - {score.task for score in compared})
    return f" Left out, since some runs lack it: {several(absent)}." if absent else ""


def _shares(found: list[Score]) -> str:
    """Name the shares of the training data behind a mean over all noise levels."""
    shares = several([f"{100 * share:g} %" for share in unique(score.fraction for score in found)])
    return f"all noise levels, fitted on {shares} of the training data"


def _gap(title: str, paper: str, pattern: re.Pattern[str]) -> Gap:
    names = [name for name in HEADS.names() if pattern.search(name)]
    plugins = ",".join(["lp", "mlp", "nmtune", *names]) if names else "lp,mlp,nmtune,NAME"
    listing = "" if names else "python -m plugins list\n"
    return Gap(
        title=title,
        paper=paper,
        reason="no results of such heads",
        command=f"{listing}python -m probes.run --plugin {plugins}",
    )
