"""What result rows and the metrics of runs say early in each pre-training run, and what became of it.

Early measures see in-domain data alone; out-of-domain data are what is to be told.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml.curves import metrics_lines
from nml.errors import UserError
from nml.layout import METRICS
from nml.untrusted import parse_json
from probes.reporting.averages import percentage
from probes.reporting.families import families
from probes.reporting.selection import at_every_step
from probes.results.row import TUNED, Row

OF_RUNS, OF_HEADS = "of the runs", "of the heads"
_STEP = re.compile(r"@\d+$")
# A test set of a task measured by one head: what is compared has to be the same in all runs.
_Cell = tuple[str, str, str, str, int, str]


class EarlyRun(NamedTuple):
    """One pre-training run.

    Attributes:
        name: Its name.
        level: Its noise, in percent.
        early: The step of its early measures.
        last: Its last step that was measured.
        measures: Early measures by name, NaN where the run has none.
        validation: Early validation accuracy, in percent: of its own where all runs have that, else of heads.
        final: Mean score at the end in percent, by domain.
    """

    name: str
    level: float
    early: int
    last: int
    measures: Mapping[str, float]
    validation: float
    final: Mapping[str, float]


class Family(NamedTuple):
    """The runs of one family.

    Attributes:
        name: Its name.
        runs: Those that have early rows.
        without: Names of the runs that lack rows at the step that is early or at the one that is last in
            the others.
        validated: Whose validation accuracy it is.
    """

    name: str
    runs: tuple[EarlyRun, ...]
    without: tuple[str, ...]
    validated: str


def early_families(rows: Iterable[Row], at: float) -> list[Family]:
    """Return the runs of each family, measured early and at the end.

    Args:
        rows: Result rows; those of checkpoints of known noise without downstream noise count, of one metric,
            and of the newest data and code.
        at: The share of a run's steps up to which a measure is early, above 0 and below 1.
    """
    used = [
        row
        for row in at_every_step(list(rows))
        if row.noise_ratio is not None
        and row.step is not None
        and row.encoder_kind != TUNED
        and not row.downstream_noise
    ]
    largest: dict[str, float] = defaultdict(float)
    for row in used:
        largest[row.task] = max(largest[row.task], row.fraction)
    named = families(used)
    found: dict[str, dict[str, dict[int, dict[_Cell, Row]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in used:
        if row.fraction == largest[row.task]:
            cell = row.domain, row.task, row.dataset, row.head, row.seed, row.study
            found[named[row.encoder_hash]][_STEP.sub("", row.encoder)][row.step or 0][cell] = row
    return [_family(name, dict(sorted(runs.items())), at) for name, runs in sorted(found.items())]


def _family(name: str, runs: Mapping[str, Mapping[int, Mapping[_Cell, Row]]], at: float) -> Family:
    # Of all runs the same two steps: one that was measured later than the others would be ahead of them.
    last = max(step for steps in runs.values() for step in steps)
    counted = Counter(step for steps in runs.values() if last in steps for step in steps if step <= at * last)
    early = max(counted, key=lambda step: (counted[step], step), default=0)
    pairs = {run: (early, last) for run, steps in runs.items() if {early, last} <= steps.keys()}
    seen = {run: (runs[run][early], runs[run][last]) for run, (early, last) in pairs.items()}
    early_cells = _shared([{cell for cell in early if cell[0] == "id"} for early, _ in seen.values()])
    last_cells = _shared([set(last) for _, last in seen.values()])
    if not early_cells or not last_cells:
        return Family(name, (), tuple(runs), OF_HEADS)
    told = {run: _metrics(next(iter(runs[run][pairs[run][1]].values())), pairs[run][0]) for run in pairs}
    validated = OF_RUNS if all("validation" in each for each in told.values()) else OF_HEADS
    made = []
    for run, (early_rows, last_rows) in seen.items():
        first = [early_rows[cell] for cell in sorted(early_cells)]
        row = first[0]
        measures = {
            "SVE": statistics.fmean(each.sve for each in first),
            "LSVR": statistics.fmean(each.lsvr for each in first),
            "early probe": 100 * statistics.fmean(each.metric for each in first),
            **{key: told[run].get(key, math.nan) for key in ("training accuracy", "memorised")},
        }
        of_heads = 100 * statistics.fmean(map(_validation, first))
        final = {
            domain: 100 * statistics.fmean(last_rows[cell].metric for cell in last_cells if cell[0] == domain)
            for domain in sorted({cell[0] for cell in last_cells})
        }
        value = told[run]["validation"] if validated == OF_RUNS else of_heads
        if not math.isfinite(value):
            continue
        level = percentage(row.noise_ratio or 0.0)
        made.append(EarlyRun(run, level, *pairs[run], measures, value, final))
    judged = {run.name for run in made}
    return Family(name, tuple(made), tuple(run for run in runs if run not in judged), validated)


def _shared(sets: Sequence[set[_Cell]]) -> set[_Cell]:
    return set.intersection(*sets) if sets else set()


def _validation(row: Row) -> float:
    """Return the validation score of the setting that was chosen; NaN where the row does not tell it."""
    selection: dict[str, Any] = parse_json(row.selection)
    try:
        return float(selection["validation"][selection["chosen"]])
    except (LookupError, TypeError, ValueError):
        return math.nan


def _metrics(row: Row, step: int) -> dict[str, float]:
    """Return what a run's own metrics said last by a step, in percent; empty where its folder is not here."""
    found: dict[str, float] = {}
    if row.run_path is None:
        return found
    path = Path(row.run_path) / METRICS
    try:
        for line in metrics_lines(path):
            if line.get("step", 0) <= step:
                found |= _said(line)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: does not read: {type(error).__name__}: {error}",
            possible="a file that pretrain.run wrote",
        ) from error
    return found


def _said(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what a line of a run's metrics says, in percent."""
    if line.get("event") == "validation" and "top1" in line:
        return {"validation": 100 * float(line["top1"])}
    kept, flipped = (line.get(name) or {} for name in ("kept", "flipped"))
    if line.get("event") != "noise" or "accuracy" not in kept:
        return {}
    right = kept["accuracy"] * kept["samples"] + flipped.get("given", 0) * flipped.get("samples", 0)
    found = {"training accuracy": 100 * right / (kept["samples"] + flipped.get("samples", 0))}
    if "given" in flipped:
        found["memorised"] = 100 * float(flipped["given"])
    return found
