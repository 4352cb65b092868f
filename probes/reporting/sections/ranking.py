"""Heads ranked over tasks, with a critical-difference diagram."""

from __future__ import annotations

from probes.reporting.ranks import HEADS, TASKS, Ranks, rank_heads
from probes.reporting.records import Figure, Gap, Panel, Point, Section, Series, Table, cells
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import number_cell, probability, several
from probes.results.row import Domain

COMMAND = (
    "python -m probes.tasks list\npython -m probes.run --plugin lp,mlp,nmtune --task NAME NAME NAME NAME NAME"
)


def section(study: Study) -> Section:
    """Return the section."""
    found: list[tuple[str, Domain, str, Ranks]] = []
    for family in study.families:
        for domain, title in DOMAINS:
            ranks = rank_heads(in_domain(of_family(study.main, family), domain), study.heads)
            if ranks:
                found.append((family, domain, title, ranks))
    gap = Gap(
        title="Heads ranked over tasks",
        reason=f"ranks need {HEADS} heads on the same {TASKS} tasks",
        command=COMMAND,
    )
    return Section(
        name="ranks",
        title="Heads ranked over tasks",
        intro=(
            "Each task ranks the heads by their mean over its runs and seeds; rank 1 is the best. The tasks "
            "are the unit here, so that this speaks of other tasks like these with these encoders."
        ),
        items=(_figure(study, found), _table(study, found)) if found else (gap,),
    )


def _figure(study: Study, found: list[tuple[str, Domain, str, Ranks]]) -> Figure:
    families = len({family for family, *_ in found})
    panels = tuple(
        Panel(
            title=title if families == 1 else f"{family}: {title}",
            x_label="Mean rank",
            y_label="",
            series=tuple(
                Series(label=head, points=(Point(x=rank, y=0.0),), slot=study.head_slot(head))
                for head, rank in zip(ranks.heads, ranks.ranks, strict=True)
            ),
            kind="ranks",
            p_values=ranks.p_values,
            alt="; ".join(
                f"{head}: mean rank {rank:.2f}" for head, rank in zip(ranks.heads, ranks.ranks, strict=True)
            )
            + ".",
        )
        for family, _, title, ranks in found
    )
    return Figure(
        name="ranks-figure",
        title="Critical-difference diagram",
        caption="Mean rank of each head; a bar joins heads that Nemenyi's test does not tell apart at 5 %.",
        panels=panels,
    )


def _table(study: Study, found: list[tuple[str, Domain, str, Ranks]]) -> Table:
    heads = [head for head in study.heads if any(head in ranks.heads for *_, ranks in found)]
    rows = []
    for family, _, title, ranks in found:
        of_head = dict(zip(ranks.heads, ranks.ranks, strict=True))
        rows.append(
            cells(
                family,
                title,
                *(number_cell(of_head.get(head), 2) for head in heads),
                number_cell(ranks.statistic, 1),
                probability(ranks.p),
                number_cell(ranks.critical_difference, 2),
                str(len(ranks.tasks)),
            )
        )
    tasks = sorted({task for *_, ranks in found for task in ranks.tasks})
    return Table(
        name="ranks-table",
        title="Mean ranks",
        caption=(
            f"Friedman's test of equal ranks and the critical difference of Nemenyi's comparisons at 5 %. "
            f"Over {several(tasks, limit=20)}."
        ),
        header=("Encoders", "Domain", *heads, "Friedman's χ²", "p", "Critical difference", "Tasks"),
        rows=tuple(rows),
        text_columns=2,
        grouped=True,
    )
