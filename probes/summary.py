"""The small table that ends a run of probes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from nml.text_table import in_columns
from nml.untrusted import parse_json
from probes.results.row import Row

HEADER = (
    "encoder",
    "noise",
    "task",
    "head",
    "ID",
    "OOD",
    "encoder SVE",
    "head SVE",
    "encoder LSVR",
    "head LSVR",
)


def summary_table(rows: Sequence[Row]) -> str:
    """Return a text table: one line an (encoder, task, head), means over seeds and OOD variants.

    Networks of a tuning that hold different shares of the tuned weights count as heads of their own.

    Where a task has no accuracy its own metric stands there, and the column says which. Where a study has
    several fractions or downstream noises, only the largest fraction and the smallest noise are shown; the
    results hold the rest.
    """
    fraction = max(row.fraction for row in rows)
    noise = min(row.downstream_noise for row in rows)
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.fraction == fraction and row.downstream_noise == noise:
            pretraining = "-" if row.noise_ratio is None else f"{row.noise_ratio:.3g}"
            head = row.head if (share := _wise_ft(row)) == 1 else f"{row.head} WiSE-FT {share:g}"
            groups[row.encoder, pretraining, row.task, head].append(row)
    measured = {row.metric_name if row.accuracy is None else "acc" for row in rows}
    name = measured.pop() if len(measured) == 1 else "score"
    header = (*HEADER[:4], f"ID {name}", f"OOD {name}", *HEADER[6:])
    lines = [header, *((*key, *_cells(group)) for key, group in groups.items())]
    return "\n".join(in_columns(lines, text_columns=4))


def in_words(rows: Sequence[Row]) -> list[str]:
    """Return a line an (encoder, task, head): ID and OOD score, and the encoder's SVE on the test data."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.encoder, row.task, row.head].append(row)
    return [f"{task} {head}: {_words(group)}" for (_, task, head), group in groups.items()]


def _wise_ft(row: Row) -> float:
    return float(parse_json(row.hyper_parameters or "{}").get("wise_ft", 1.0))


def _words(rows: Sequence[Row]) -> str:
    inside, outside, sve, *_ = _cells(rows)
    name = rows[0].metric_name if rows[0].accuracy is None else "accuracy"
    # A task need not have both.
    places = {"in-domain": inside, "out-of-domain": outside}
    scores = ", ".join(f"{score} % {place}" for place, score in places.items() if score != "-")
    return f"{name} {scores or '-'}, SVE {sve}"


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    inside = [row for row in rows if row.domain == "id"]
    outside = [row for row in rows if row.domain == "ood"]
    return (
        _percent(map(_score, inside)),
        _percent(map(_score, outside)),
        _number(row.sve for row in inside or outside),
        _number(row.head_sve for row in inside or outside),
        _number(row.lsvr for row in outside or inside),
        _number(row.head_lsvr for row in outside or inside),
    )


def _score(row: Row) -> float:
    return row.metric if row.accuracy is None else row.accuracy


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None and not math.isnan(value)]
    return sum(found) / len(found) if found else None


def _percent(values: Iterable[float]) -> str:
    mean = _mean(values)
    return "-" if mean is None else f"{100 * mean:.1f}"


def _number(values: Iterable[float | None]) -> str:
    mean = _mean(values)
    return "-" if mean is None else f"{mean:.3f}"
