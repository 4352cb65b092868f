"""Every test set for itself: accuracy against noise (Fig. 6 to 9) and in numbers (Tables 7, 8, 12, 13)."""

from __future__ import annotations

from probes.reporting.averages import Mean, Score, means, noise_key, plain
from probes.reporting.paired import BASELINE, METHOD, Asked, compare, counted, marks
from probes.reporting.records import Figure, Gap, Panel, Section, Table, cells
from probes.reporting.sections.noise import head_lines, panel
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import error_bars, percent, points, runs_behind
from probes.results.row import Domain

OOD_COMMAND = "python -m probes.tasks list\npython -m probes.run --plugin lp,mlp,nmtune --task NAME"


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Figure | Table | Gap] = []
    for domain, title in DOMAINS:
        found = in_domain(plain(study.of_main_heads(study.dataset_scores)), domain)
        if not found:
            items.append(
                Gap(
                    title=f"{title} test sets",
                    paper="Fig. 6 to 9, Tables 7, 8, 12 and 13",
                    reason=f"no {title.lower()} results",
                    command=OOD_COMMAND,
                )
            )
            continue
        # The ladder may lack a domain that encoders of unknown noise have.
        if any(score.family in study.ladders for score in study.known(found)):
            items.append(_figure(study, found, domain, title))
        items.append(_table(study, found, domain, title))
    return Section(name="datasets", title="Each test set", items=tuple(items))


def _figure(study: Study, found: list[Score], domain: Domain, title: str) -> Figure:
    panels: list[Panel] = []
    behind: list[Mean] = []
    for family, levels in study.ladders.items():
        within = of_family(study.known(found), family)
        for dataset in sorted({score.task for score in within}):
            by = means(
                (score for score in within if score.task == dataset),
                lambda score: (score.head, noise_key(score)),
            )
            behind += by.values()
            panels.append(panel(study, study.title(family, dataset), head_lines(study, by, levels), levels))
    return Figure(
        name=f"datasets-{domain}",
        title=f"{study.metric.capitalize()} against pre-training noise on each {title.lower()} test set",
        paper="Fig. 6 to 9",
        caption=f"{error_bars(behind)}. Each panel has its own vertical range.",
        panels=tuple(panels),
    )


def _table(study: Study, found: list[Score], domain: Domain, title: str) -> Table:
    heads = [head for head in study.heads if any(score.head == head for score in found)]
    others = [head for head in heads if head != BASELINE] if BASELINE in heads else []
    groups = [
        (dataset, group, [score for score in found if (score.task, _encoders(score)) == (dataset, group)])
        for dataset, group in _groups(found)
    ]
    judged = compare([Asked(members, head) for _, _, members in groups for head in others])
    changes = iter(judged)
    rows = []
    behind: list[Mean] = []
    for dataset, group, members in groups:
        by = means(members, lambda score: score.head)
        behind += by.values()
        rows.append(
            cells(
                dataset,
                group,
                *(percent(by.get(head)) for head in heads),
                *(points(next(changes)) for _ in others),
                str(max((mean.n for mean in by.values()), default=0)),
            )
        )
    return Table(
        name=f"datasets-{domain}-table",
        title=f"{study.metric.capitalize()} on each {title.lower()} test set",
        paper="Tables 7, 8, 12 and 13",
        caption=(
            f"In percent, mean ± standard deviation over pre-training runs, of one run (standard deviation "
            f"over seeds of the head); {runs_behind(behind)}. "
            + (
                f"{METHOD} In percentage points. {marks(counted(judged))}"
                if others
                else f"No results of {BASELINE} to compare with."
            )
        ),
        header=("Test set", "Encoders", *heads, *(f"{head} minus {BASELINE}" for head in others), "Runs"),
        rows=tuple(rows),
        text_columns=2,
        grouped=True,
    )


def _groups(found: list[Score]) -> list[tuple[str, str]]:
    """Return the pairs of test set and encoders that have scores, levels ascending."""
    ordered = sorted(found, key=lambda score: (score.task, score.family, score.noise or 0.0, score.encoder))
    return list(dict.fromkeys((score.task, _encoders(score)) for score in ordered))


def _encoders(score: Score) -> str:
    """Name the encoders a score is averaged with: those of one family and noise level."""
    return score.encoder if score.noise is None else f"{score.family}, {noise_key(score):g} %"
