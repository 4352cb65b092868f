"""Results to publish: the rows of each run in one file, with paths that hold on any machine."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError
from probes.results.row import Row
from probes.results.rowfiles import row_files, write_rows


def pack_rows(rows: Sequence[Row], out: Path, base: Path) -> list[Path]:
    """Write rows as a results folder with a file a run, and return the files.

    Rows of one test set stand together, so that a spectrum that they share is stored about once. What they
    follow from stays, and so do their ids.

    Args:
        rows: The rows.
        out: A results folder; files of the same runs that it has are replaced.
        base: The folder that paths of runs and sets become relative to; those elsewhere keep their last part.

    Raises:
        UserError: If ``out`` holds results of which the rows are no continuation.
    """
    ids = {row.row_id for row in rows}
    before = row_files(out)
    files = []
    for _, group in itertools.groupby(sorted(rows, key=_place), key=_owner):
        moved = [
            dataclasses.replace(
                row,
                run_path=_relative(row.run_path, base),
                set_path=_relative(row.set_path, base),
            )
            for row in group
        ]
        file = write_rows(out, moved)
        if file:
            files.append(file)
    for file in set(before) - set(files):
        lost = _ids_of(file) - ids
        if lost:
            raise UserError(
                f"{out}: has {len(lost)} rows that are not among those to be packed, first {min(lost)}",
                mend="name another folder, or pack the results that they came from as well",
            )
        file.unlink()
    return files


def _owner(row: Row) -> str:
    """Return the run that a row belongs to, all of its checkpoints with it; else the encoder."""
    return row.run_path or row.encoder


def _place(row: Row) -> tuple[object, ...]:
    step = row.step if row.step is not None else -1
    return (
        _owner(row),
        row.encoder,
        step,
        row.task,
        row.domain,
        row.dataset,
        row.head,
        row.fraction,
        row.seed,
        row.row_id,
    )


def _ids_of(file: Path) -> set[str]:
    from nml.parquet import read_parquet

    return set(read_parquet(file, ["row_id"])["row_id"].to_pylist())


def _relative(path: str | None, base: Path) -> str | None:
    """Return a path as it is from ``base``; of one elsewhere its last part, and URLs as they are."""
    if path is None or "://" in path or not Path(path).is_absolute():
        return path
    resolved = Path(path)
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else resolved.name
