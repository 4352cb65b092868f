"""The table that the command prints too: noise x head."""

from __future__ import annotations

from probes.reporting.averages import Mean, Score, level_and_head, means
from probes.reporting.records import Section, Table, cells
from probes.reporting.study import Study, in_domain, of_family
from probes.reporting.wording import NONE, number, percent, runs_behind, several, tasks_behind
from probes.results.row import spectra_note

SUMMARY = "summary-table"
SPECTRAL = ("Encoder SVE", "Head SVE", "Encoder LSVR", "Head LSVR")


def section(study: Study) -> Section:
    """Return the summary."""
    return Section(name="summary", title="Summary", items=(summary_table(study),))


def summary_table(study: Study) -> Table:
    """Return accuracy in and out of domain, SVE and LSVR for every noise level and head."""
    families = study.families
    named = len(families) > 1
    rows = []
    behind: list[Mean] = []
    averaged: dict[str, str] = {}
    shifted = {family: bool(in_domain(of_family(study.main, family), "ood")) for family in families}
    for family in families:
        found = of_family(study.main, family)
        columns = _columns(found)
        behind += columns["id"].values()
        averaged[family] = _averaged(study, family, columns)
        for key in study.lines(found):
            if key not in columns["id"] and key not in columns["ood"]:
                continue
            noise, head = key
            rows.append(
                cells(
                    *([family] if named else []),
                    NONE if noise is None else f"{noise:g} %",
                    head,
                    percent(columns["id"].get(key)),
                    *([percent(columns["ood"].get(key))] if any(shifted.values()) else []),
                    *(number(columns[name].get(key)) for name in SPECTRAL),
                )
            )
    metric = study.metric
    return Table(
        name=SUMMARY,
        title=f"{metric.capitalize()} and spectra by pre-training noise and head",
        caption=(
            f"{metric.capitalize()} in percent: mean over {_tasks(averaged)} ± standard deviation over "
            f"pre-training runs, of one run (standard deviation over seeds of the head); "
            f"{runs_behind(behind)}. {spectra_note(shifted.values())} Higher SVE: a flatter spectrum. Higher "
            f"LSVR: a smaller share of the largest singular value. A dash: not measured. Compare either only "
            "where N and dimension agree."
        ),
        header=(
            *(["Encoders"] if named else []),
            "Noise",
            "Head",
            f"ID {metric}",
            *([f"OOD {metric}"] if any(shifted.values()) else []),
            *SPECTRAL,
        ),
        rows=tuple(rows),
        text_columns=3 if named else 2,
        grouped=True,
    )


def _columns(found: list[Score]) -> dict[str, dict[tuple[float | None, str], Mean]]:
    inside, outside = in_domain(found, "id"), in_domain(found, "ood")
    return {
        "id": means(inside, level_and_head),
        "ood": means(outside, level_and_head),
        "Encoder SVE": means(inside, level_and_head, lambda score: score.sve),
        "Head SVE": means(inside, level_and_head, lambda score: score.head_sve),
        "Encoder LSVR": means(outside or inside, level_and_head, lambda score: score.lsvr),
        "Head LSVR": means(outside or inside, level_and_head, lambda score: score.head_lsvr),
    }


def _averaged(study: Study, family: str, columns: dict[str, dict[tuple[float | None, str], Mean]]) -> str:
    """Name the tasks that the means of a family are over, which need not be all that have results."""
    inside, outside = (tasks_behind(columns[domain].values()) for domain in ("id", "ood"))
    text = _named(inside or outside)
    if inside and outside and inside != outside:
        text += f", out of domain over {_named(outside)},"
    tasks = {*inside, *outside}
    shares = {score.fraction for score in of_family(study.main, family) if score.task in tasks}
    return text + (f" fitted on {study.fitted_on(family, tasks)}" if len(shares) > 1 else "")


def _named(tasks: list[str]) -> str:
    if not tasks:
        return "no task"
    return several(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"


def _tasks(averaged: dict[str, str]) -> str:
    """Say what the means are over, for each family where they differ."""
    if len(set(averaged.values())) == 1:
        return next(iter(averaged.values()))
    return "; ".join(f"{text} ({family})" for family, text in averaged.items()) or _named([])
