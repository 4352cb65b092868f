"""Heads on frozen features beside fine-tuned encoders: what each reaches, and what it costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from nml.untrusted import parse_json
from probes.reporting.averages import Score, means, noise_key, plain, scores
from probes.reporting.comparable import case
from probes.reporting.paired import BASELINE, METHOD, Asked, compare, counted, marks
from probes.reporting.records import Cell, Section, Table, cells
from probes.reporting.sections.tries import tries
from probes.reporting.study import DOMAINS, Study, in_domain
from probes.reporting.wording import NONE, percent, points, several
from probes.results import Row

_PREFIX = "tune-"
_MEGABYTE = 1 << 20


def section(study: Study) -> Section | None:
    """Return the section; None where no encoder was fine-tuned."""
    if study.selection.tuned is None:
        return None
    return Section(
        name="white-box",
        title="Black box and white box",
        intro="Heads on the features of frozen encoders, and the encoders fine-tuned on the same data.",
        items=(_table(study, Study(study.selection.tuned)),),
    )


def _table(black: Study, white: Study) -> Table:
    tuned = [
        dataclasses.replace(score, family=black.selection.family.get(score.encoder_hash, score.family))
        for score in plain(scores(white.selection))
    ]
    wanted = {case(score) for score in tuned}
    frozen = [score for score in black.of_main_heads(black.scores) if case(score) in wanted]
    labels = _labels(white)
    order = [*(head for head in black.heads if any(score.head == head for score in frozen)), *labels]
    groups = _groups([*frozen, *tuned])
    judged = iter(
        compare(
            [
                Asked(in_domain(found, domain), name)
                for found in groups.values()
                for name in order
                if name != BASELINE and any(score.head == name for score in found)
                for domain, _ in DOMAINS
            ]
        )
    )
    told = []
    rows = []
    for group, found in groups.items():
        by = {domain: means(in_domain(found, domain), lambda score: score.head) for domain, _ in DOMAINS}
        for name in order:
            if not any(score.head == name for score in found):
                continue
            entries: list[str | Cell] = [
                group,
                labels.get(name, name),
                "white" if name in labels else "black",
            ]
            for domain, _ in DOMAINS:
                change = None if name == BASELINE else next(judged)
                told.append(change)
                entries += [
                    percent(by[domain].get(name)),
                    "baseline" if name == BASELINE else points(change),
                ]
            runs = {score.encoder_hash for score in found if score.head == name}
            entries.append(Cell(str(len(runs)), numbers=(("", len(runs)),)))
            fits = _fits(white if name in labels else black, name, found)
            rows.append(cells(*entries, *_costs(fits)))
    return Table(
        name="white-box-table",
        title=f"{black.metric.capitalize()} and cost of heads and of fine-tuned encoders",
        caption=(
            f"{black.metric.capitalize()} in percent on the tasks, shares of the data and seeds on which "
            f"encoders were fine-tuned: mean over tasks ± standard deviation over pre-training runs, of one "
            f"run (standard deviation over seeds). Differences in percentage points. {METHOD} "
            f"{marks(counted(told))} Trained: numbers that were trained, the classifier's among them. Fit: "
            f"mean over fits, at the chosen settings; of heads without the pass that gave their features, "
            f"beside whatever else the machine was doing. Memory: the most at once during a fit, of the GPU, "
            f"or of the whole process where there was none; of heads it is not measured. Tries: settings "
            f"that validation data chose from."
        ),
        header=(
            "Encoders",
            "Method",
            "Box",
            *(
                text
                for domain in ("ID", "OOD")
                for text in (f"{domain} {black.metric}", f"{domain} minus {BASELINE}")
            ),
            "Runs",
            "Trained",
            "Fit (s)",
            "Memory (MB)",
            "Tries",
        ),
        rows=tuple(rows),
        text_columns=3,
        grouped=True,
    )


def _labels(white: Study) -> dict[str, str]:
    """Return the names of the tunings as a reader sees them, by label: main settings first."""
    shares = {
        white.selection.head[row.row_id]: float(parse_json(row.hyper_parameters or "{}").get("wise_ft", 1.0))
        for row in white.rows
    }
    found = dict.fromkeys([*white.heads, *sorted(shares)])
    return {label: _named(label, shares.get(label, 1.0)) for label in found}


def _named(label: str, share: float) -> str:
    """Return a label that tells the share of tuned weights where it is not all, whatever was run first."""
    name, _, rest = label.removeprefix(_PREFIX).partition(" (")
    parts = [part for part in rest.removesuffix(")").split(", ") if part and not part.startswith("wise_ft")]
    parts += [f"WiSE-FT {share:g}"] if share != 1 else []
    return f"{name} ({', '.join(parts)})" if parts else name


def _groups(found: Sequence[Score]) -> dict[str, list[Score]]:
    """Return scores by family and noise level."""
    groups: dict[str, list[Score]] = {}
    for score in sorted(found, key=lambda score: (score.family, score.noise is None, score.noise or 0.0)):
        name = score.family if score.noise is None else f"{score.family}, {noise_key(score):g} % noise"
        groups.setdefault(name, []).append(score)
    return groups


def _fits(study: Study, name: str, found: Sequence[Score]) -> list[Row]:
    """Return a row of each fit behind the scores of a head or method."""
    wanted = {
        (score.encoder_hash, score.task, score.fraction, score.seed) for score in found if score.head == name
    }
    fits: dict[tuple[str, str, float, int], Row] = {}
    for row in study.rows:
        key = row.encoder_hash, row.task, row.fraction, row.seed
        if row.downstream_noise == 0 and study.selection.head[row.row_id] == name and key in wanted:
            fits.setdefault(key, row)
    return list(fits.values())


def _costs(fits: Sequence[Row]) -> list[Cell]:
    """Return what was trained, the time, the memory and the tries of fits."""
    seconds = statistics.fmean(row.fit_seconds for row in fits)
    counts = sorted({row.trained_parameters for row in fits if row.trained_parameters is not None})
    memory = [row.peak_memory / _MEGABYTE for row in fits if row.peak_memory is not None]
    return [
        Cell(
            " to ".join(f"{count:,}" for count in dict.fromkeys(counts[:1] + counts[-1:])) or NONE,
            numbers=(("", counts[-1] if counts else None),),
        ),
        Cell(f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}", numbers=(("", seconds),)),
        Cell(f"{max(memory):,.0f}" if memory else NONE, numbers=(("", max(memory) if memory else None),)),
        Cell(several(map(str, sorted({tries(row) for row in fits})))),
    ]
