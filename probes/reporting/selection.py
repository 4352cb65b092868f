"""Which rows of a results folder are compared, and what was left out and why.

A results folder gathers whatever was run over weeks. Rows that do not belong together (spectra of
several conventions, a run's earlier steps, an older split of a task) must not end up in one mean.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from nml.errors import UserError
from nml.untrusted import parse_json
from probes.reporting.families import families
from probes.reporting.variants import variants
from probes.results import Row
from probes.results.row import IDENTITY, TUNED

_Data = tuple[str, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows a report is made from.

    Attributes:
        rows: Rows that can be compared.
        notes: One sentence for every group of rows left out.
        convention: The SVD convention of all spectra in ``rows``.
        family: Encoder hash -> name of the family of encoders that differ in noise (and seed) only.
        head: Row id -> label of the head, with what sets it apart where a head has several settings.
        main_heads: Labels of the heads in their main setting, lp first; the others are ablations.
        along: The same of what was measured at several steps of a run, all of these; None if there is none.
        tuned: The same of encoders that were fine-tuned, which are no heads; None where there is none.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    convention: str
    family: dict[str, str]
    head: dict[str, str]
    main_heads: tuple[str, ...]
    along: Selection | None = None
    tuned: Selection | None = None


def select(rows: Sequence[Row], convention: str | None = None, metric: str | None = None) -> Selection:
    """Choose the rows to report.

    Args:
        rows: All rows of a results folder.
        convention: SVD convention to report; None for ``raw`` where there is any, else the commonest.
        metric: What to report, see :func:`scale_of`; None for ``accuracy`` where there is any, else the
            commonest.

    Raises:
        UserError: If no row has ``convention``, or ``metric``, or all are of fine-tuned encoders.
    """
    heads = [row for row in rows if row.method is None]
    if rows and not heads:
        raise UserError(
            "these results are of fine-tuned encoders alone, which a report shows beside heads",
            mend="run heads with the same encoder, task and results: python -m probes.run --plugin lp,mlp",
        )
    chosen = _select(heads, convention, metric)
    scale = scale_of(chosen.rows[0]) if chosen.rows else metric
    tuned = [
        row
        for row in rows
        if row.method is not None and scale_of(row) == scale and row.svd_convention == chosen.convention
    ]
    if not tuned:
        return chosen
    beside = _select(tuned, chosen.convention, scale)
    notes = tuple(f"Of fine-tuned encoders: {note}" for note in beside.notes)
    return dataclasses.replace(chosen, notes=chosen.notes + notes, tuned=beside)


def at_every_step(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of frozen encoders that can be compared, of all steps of a run.

    Of one metric and one convention, both the usual ones, of finite scores, and of the newest data and code.
    """
    frozen = [row for row in rows if row.method is None]
    if not frozen:
        return []
    alike, _ = _alike(frozen, None, None, [])
    return _newest_code(_newest_data(alike, _last_created(frozen), []), [])


def _select(rows: Sequence[Row], convention: str | None, metric: str | None) -> Selection:
    notes: list[str] = []
    whole, chosen = _alike(rows, convention, metric, notes)
    last = _last_created(rows)
    along = _along(whole, chosen, last)
    kept = _newest(
        whole,
        of=_run,
        version=lambda row: (row.step or 0,),
        note=lambda run, count: f"{_count(count, 'row')} of earlier steps of the run {run} left out.",
        notes=notes,
    )
    kept = _newest_code(_newest_data(kept, last, notes), notes)
    labels, main = variants(kept)
    return Selection(
        rows=tuple(kept),
        notes=tuple(notes),
        convention=chosen,
        family=families(kept),
        head=labels,
        main_heads=main,
        along=along,
    )


def _alike(
    rows: Sequence[Row], convention: str | None, metric: str | None, notes: list[str]
) -> tuple[list[Row], str]:
    """Return the rows of one metric and convention whose scores are numbers, and the convention."""
    scale = metric or _usual(map(scale_of, rows), "accuracy")
    on_scale = [row for row in rows if scale_of(row) == scale]
    if not on_scale:
        found = ", ".join(sorted(set(map(scale_of, rows))))
        raise UserError(f"--metric {scale}: no result has it", possible=found)
    for other in sorted(set(map(scale_of, rows)) - {scale}):
        beside = [row for row in rows if scale_of(row) == other]
        tasks = ", ".join(sorted({row.task for row in beside}))
        notes.append(
            f"{_count(len(beside), 'row')} of {other} on {tasks} left out, of which no mean with {scale} "
            f"would say anything; for a report of them say --metric {other}, with an --out of its own."
        )
    chosen = convention or _usual((row.svd_convention for row in on_scale), "raw")
    kept = [row for row in on_scale if row.svd_convention == chosen]
    if not kept:
        found = ", ".join(sorted({row.svd_convention for row in on_scale}))
        raise UserError(f"--svd {chosen}: no result has it", possible=found)
    if len(kept) < len(on_scale):
        others = ", ".join(sorted({row.svd_convention for row in on_scale} - {chosen}))
        dropped = _count(len(on_scale) - len(kept), "row")
        notes.append(f"{dropped} with spectra in another convention ({others}) left out.")
    whole = [row for row in kept if math.isfinite(row.metric)]
    if len(whole) < len(kept):
        notes.append(f"{_count(len(kept) - len(whole), 'row')} whose metric is not a number left out.")
    return whole, chosen


def _along(rows: Sequence[Row], convention: str, last: Mapping[_Data, str]) -> Selection | None:
    """Return what of each run was measured at several steps; what is left out has its notes.

    Most is often measured at the last step alone: a mean over tasks that other steps lack says nothing.
    """
    steps: dict[tuple[object, ...], set[int | None]] = defaultdict(set)
    for row in rows:
        steps[_measured(row)].add(row.step)
    several = [row for row in rows if _run(row) is not None and len(steps[_measured(row)]) > 1]
    if not several:
        return None
    kept = _newest_code(_newest_data(several, last, []), [])
    labels, main = variants(kept)
    return Selection(
        rows=tuple(kept), notes=(), convention=convention, family=families(kept), head=labels, main_heads=main
    )


def _newest_data(rows: Sequence[Row], last: Mapping[_Data, str], notes: list[str]) -> list[Row]:
    """Keep of every task the rows of its newest data."""
    return _newest(
        rows,
        of=lambda row: row.task,
        version=lambda row: (last[_data(row)], row.task_revision, row.split_hash),
        note=lambda task, count: f"{_count(count, 'row')} of an older revision or split of {task} left out.",
        notes=notes,
    )


def _run(row: Row) -> str | None:
    """Return the run that a row measures a checkpoint of; a tuned encoder is none, whatever it came from."""
    return None if row.encoder_kind == TUNED else row.run_path


def _measured(row: Row) -> tuple[object, ...]:
    """Return what a row measures of its run, whatever the step."""
    return _run(row), row.task, row.dataset, row.head, row.fraction


def scale_of(row: Row) -> str:
    """Return what the scores of a row may be averaged with.

    ``accuracy`` stands for all metrics of single classes, as benchmarks that are averaged over (GLUE) mix
    them. Correlations of numbers and mean average precisions stand each for themselves.
    """
    return row.metric_name if row.accuracy is None else "accuracy"


def _usual(found: Iterable[str], usual: str) -> str:
    counts = Counter(found)
    return usual if usual in counts else min(counts, key=lambda name: (-counts[name], name))


def _newest(
    rows: Sequence[Row],
    *,
    of: Callable[[Row], str | None],
    version: Callable[[Row], tuple[object, ...]],
    note: Callable[[str, int], str],
    notes: list[str],
) -> list[Row]:
    """Keep of every group, named by ``of``, the rows of its greatest version; None names no group."""
    versions: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for row in rows:
        name = of(row)
        if name is not None:
            versions[name].add(version(row))
    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        name = of(row)
        if name is None or version(row) == max(versions[name]):
            kept.append(row)
        else:
            dropped[name] += 1
    notes.extend(note(name, count) for name, count in sorted(dropped.items()))
    return kept


def _newest_code(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Keep of every result that was computed by several states of the code the last one computed."""
    same: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        asked = tuple(getattr(row, name) for name in IDENTITY if name not in ("head_code", "study"))
        same[*asked, _without_flips(row.study)].append(row)
    newest = {max(group, key=lambda row: row.created).row_id for group in same.values()}
    kept = [row for row in rows if row.row_id in newest]
    dropped = Counter(row.head for row in rows if row.row_id not in newest)
    notes.extend(
        f"{_count(count, 'row')} of {head} left out: the same was computed again after its code had changed."
        for head, count in sorted(dropped.items())
    )
    codes: dict[tuple[str, str, str], set[str | None]] = defaultdict(set)
    for row in kept:
        codes[row.head, row.head_distribution, row.head_version].add(row.head_code)
    notes.extend(
        f"The results of {head} are not all of the same code; run its commands again to have them so."
        for (head, _, _), found in sorted(codes.items())
        if len(found) > 1
    )
    return kept


@functools.cache
def _without_flips(study: str) -> str:
    """Return what a study asked for, however the code of its time drew the flips of downstream labels."""
    values = parse_json(study)
    values.pop("flips", None)
    return json.dumps(values, sort_keys=True)


def _data(row: Row) -> _Data:
    return row.task, row.task_revision, row.split_hash


def _last_created(rows: Iterable[Row]) -> dict[_Data, str]:
    """Return when the newest row of every task's data was made."""
    last: dict[_Data, str] = defaultdict(str)
    for row in rows:
        last[_data(row)] = max(last[_data(row)], row.created)
    return last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
