"""How accuracy and spectra come to be: encoders at several steps of their pre-training, by noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from probes.reporting.averages import Mean, Score, means, noise_key
from probes.reporting.records import Figure, Gap, Panel, Section, Series, Table, cells
from probes.reporting.sections.noise import point
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import error_bars, percent, unique
from probes.results.row import Domain

COMMAND = "python -m probes.run --plugin lp --checkpoint runs/* --steps all"
BASELINE = "lp"
# Columns of a map: more do not fit a page.
_COLUMNS = 12

Where = tuple[float, float]
"""Noise in percent and epoch."""


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Figure | Table | Gap] = []
    if study.selection.along is None:
        items.append(
            Gap(
                title="Accuracy and spectra along the pre-training",
                reason="the results have no run at two of its steps or more",
                command=COMMAND,
            )
        )
    else:
        items += _items(Study(study.selection.along))
    items += _widths(study)
    return Section(
        name="along",
        title="Along the pre-training",
        intro="Of what runs were measured on at several of their checkpoints; other sections show the last.",
        items=tuple(items),
    )


def _items(along: Study) -> list[Figure | Table]:
    head = _head(along)
    known = [score for score in along.known(along.main) if score.head == head]
    # Rows from before epochs were recorded have steps alone.
    rows = along.rows
    axis = "Epoch" if all(row.epoch is not None for row in rows) else "Step"
    when = {row.encoder_hash: float((row.epoch if axis == "Epoch" else row.step) or 0) for row in rows}
    several = list(dict.fromkeys(score.family for score in known))
    items: list[Figure | Table] = []
    for number, family in enumerate(several):
        found = of_family(known, family)
        before = f"{family}: " if len(several) > 1 else ""
        if figure := _figure(along, found, when, axis, head, before, number):
            items.append(figure)
        items += _maps(found, when, axis, head, before, number)
    return items


def _head(study: Study) -> str:
    return BASELINE if BASELINE in study.heads else study.heads[0]


def _figure(
    along: Study,
    found: Sequence[Score],
    when: Mapping[str, float],
    axis: str,
    head: str,
    before: str,
    number: int,
) -> Figure | None:
    panels: list[Panel] = []
    behind: list[Mean] = []
    quantities: tuple[tuple[str, str, Domain, Callable[[Score], float], float], ...] = (
        *(
            (
                f"{title}, {head}",
                f"{along.metric.capitalize()} (%)",
                domain,
                lambda score: score.metric,
                100.0,
            )
            for domain, title in DOMAINS
        ),
        ("Encoder SVE, in-domain", "SVE (nats)", "id", lambda score: score.sve, 1.0),
        ("Encoder LSVR, out-of-domain", "LSVR (nats)", "ood", lambda score: score.lsvr, 1.0),
    )
    for title, label, domain, value, scale in quantities:
        by = means(
            in_domain(found, domain), lambda score: (noise_key(score), when[score.encoder_hash]), value
        )
        levels = unique(level for level, _ in by)
        series = tuple(
            Series(
                label=f"{level:g} %",
                points=tuple(point(epoch, by[level, epoch], scale) for epoch in _epochs(by, level)),
                slot=slot,
                scale="ordered",
                of=len(levels),
            )
            for slot, level in enumerate(levels)
        )
        if series:
            behind += by.values()
            ends = "; ".join(
                f"{one.label} noise: {one.points[0].y:.4g} at {one.points[0].x:g}, {one.points[-1].y:.4g} at "
                f"{one.points[-1].x:g}"
                for one in series
            )
            panels.append(Panel(title=title, x_label=axis, y_label=label, series=series, alt=f"{ends}."))
    if not panels:
        return None
    return Figure(
        name=f"along-{number}",
        title=f"{before}accuracy and spectra along the pre-training, by noise level",
        caption=(
            f"Heads fitted on {along.fitted_on(found[0].family, {score.task for score in found})}. "
            f"A line a level of pre-training noise. {error_bars(behind)}."
        ),
        panels=tuple(panels),
    )


def _epochs(by: Mapping[Where, Mean], level: float) -> list[float]:
    return sorted(epoch for of, epoch in by if of == level)


def _maps(
    found: Sequence[Score], when: Mapping[str, float], axis: str, head: str, before: str, number: int
) -> list[Table]:
    tables = []
    for domain, title in DOMAINS:
        by = means(in_domain(found, domain), lambda score: (noise_key(score), when[score.encoder_hash]))
        if not by:
            continue
        epochs = _spread(unique(epoch for _, epoch in by))
        rows = [
            cells(f"{level:g} %", *(percent(by.get((level, epoch))) for epoch in epochs))
            for level in unique(level for level, _ in by)
        ]
        tables.append(
            Table(
                name=f"along-{domain}-{number}",
                title=f"{before}{title.lower()} {head} by noise and {axis.lower()}",
                caption=f"Percent. A column a checkpoint, by its {axis.lower()}; a row a noise level.",
                header=("Noise", *(f"{axis} {epoch:g}" for epoch in epochs)),
                rows=tuple(rows),
            )
        )
    return tables


def _spread(values: Sequence[float]) -> list[float]:
    """Return some of the values, the first and the last among them."""
    if len(values) <= _COLUMNS:
        return list(values)
    return [values[round(place * (len(values) - 1) / (_COLUMNS - 1))] for place in range(_COLUMNS)]


def _widths(study: Study) -> list[Table]:
    """Return accuracy by noise and width, where ladders of several feature dimensions share their tasks."""
    head = _head(study)
    dims = {study.selection.family[row.encoder_hash]: row.dim for row in study.rows}
    ladders = sorted(study.ladders, key=lambda family: dims[family])
    if len({dims[family] for family in ladders}) < 2:
        return []
    known = [score for score in study.known(study.main) if score.head == head and score.family in ladders]
    tables = []
    for domain, title in DOMAINS:
        by = means(in_domain(known, domain), lambda score: (noise_key(score), score.family))
        columns = [family for family in ladders if any(of == family for _, of in by)]
        if len(columns) < 2:
            continue
        tables.append(
            Table(
                name=f"width-{domain}",
                title=f"{title} {head} by noise and width",
                caption="Percent, at the end of the pre-training. D is the dimension of the features.",
                header=("Noise", *(f"{family} (D = {dims[family]})" for family in columns)),
                rows=tuple(
                    cells(f"{level:g} %", *(percent(by.get((level, family))) for family in columns))
                    for level in unique(level for level, _ in by)
                ),
            )
        )
    return tables
