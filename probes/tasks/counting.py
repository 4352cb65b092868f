"""How many samples a task has, as far as that is known before any of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from probes.spec import Spec, split_spec
from probes.tasks.assembling import OOD, parse_limit
from probes.tasks.registry import task_source
from probes.tasks.shifts import SHIFTS
from probes.tasks.task import TaskRecord


class Counts(NamedTuple):
    """Samples of a task; None where only its data would tell.

    Attributes:
        train: Training samples, those for validation included.
        tests: Samples of each test set, in-domain first.
    """

    train: int | None
    tests: tuple[int | None, ...]


def count_samples(text: str) -> Counts:
    """Return what is known of a task by its record, or by the footers of its Parquet files.

    Raises:
        UserError: If there is no such task, or a limit is impossible.
    """
    spec = split_spec(text)
    record = task_source(spec.kind).record
    train, test, others = _published(record, spec) if record.published else _of_files(spec)
    limit = parse_limit(spec)
    ood_limit = parse_limit(spec, "ood_limit") or limit
    shifts = _shifts(spec, record, given=bool(others))
    tests = [_at_most(test, limit), *(_at_most(count, ood_limit) for count in others)]
    tests += [_at_most(tests[0], ood_limit)] * shifts
    return Counts(_at_most(train, limit), tuple(tests))


def _published(record: TaskRecord, spec: Spec) -> tuple[int | None, int | None, Sequence[int | None]]:
    splits = record.splits
    # DomainNet's record names every domain; the one that is trained on is no variant.
    own = f"-{spec.options.get('train', '')}_"
    others = [name for name in record.ood if own not in name]
    kept = [splits[name] for name in ("train", "validation") if name in splits]
    return sum(kept) or None, splits.get("test", splits.get("val")), [None] * len(others)


def _of_files(spec: Spec) -> tuple[int | None, int | None, Sequence[int | None]]:
    counts = [_rows(spec.kind, argument) for argument in spec.arguments]
    train, test, *others = [*counts, None, None] if len(counts) < 2 else counts
    return train, test, others


def _rows(kind: str, argument: str) -> int | None:
    named = argument.partition("=")[2] if argument.startswith(OOD) else argument
    try:
        return int(pq.ParquetFile(Path(named)).metadata.num_rows) if kind == "parquet" else None
    except (OSError, ValueError):
        return None


def _shifts(spec: Spec, record: TaskRecord, *, given: bool) -> int:
    """Return how many shifted versions of the test samples stand in for variants."""
    said = spec.options.get("shifts")
    if said is not None:
        return 0 if said == "none" else len(said.split("+"))
    return 0 if given or (record.ood and record.published) else len(SHIFTS[record.modality])


def _at_most(count: int | None, limit: int | None) -> int | None:
    return limit if count is None else count if limit is None else min(count, limit)
