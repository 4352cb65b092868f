"""Rows as small Parquet files that many processes write and read at once, dividing the work among them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import check_regular, make_folder, write_bytes
from nml.locking import byte_lock, look_again
from nml.parquet import read_parquet
from nml.untrusted import Untrusted, is_printable, parse_json, shown
from probes.hashing import hash_value
from probes.results.row import SCHEMA_VERSION, Domain, Row, arrow_schema

ROWS = "rows"
"""Folder of the row files in a results folder."""


def write_rows(folder: Path | str, rows: Iterable[Row]) -> Path | None:
    """Add ``rows`` to a results folder as one file that is whole or absent.

    The file is named after the hash of its content: writers never meet, and writing the same rows
    again is harmless.

    Returns:
        The file written; None if there were no rows.
    """
    records = [dataclasses.asdict(row) for row in rows]
    if not records:
        return None
    content = json.dumps(records, sort_keys=True, ensure_ascii=False).encode()
    path = Path(folder) / ROWS / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(records, schema=arrow_schema())
    # Statistics of each column would be half of a small file.
    pq.write_table(table, buffer, compression="zstd", compression_level=15, write_statistics=False)
    write_bytes(path, buffer.getvalue())
    return path


def read_rows(folder: Path | str, ids: Collection[str] | None = None) -> list[Row]:
    """Return every row of a results folder, oldest first, or those of ``ids`` alone.

    Where a result was computed twice (two processes at once, or again for the spectrum of its head, which was
    left out at first), the older one counts of those that have that spectrum, or of all if none has.

    Raises:
        UserError: If the folder holds no results, or a file is damaged or of another version.
    """
    spectra: dict[bytes, tuple[float, ...]] = {}
    files = row_files(folder)
    if ids is not None:
        files = [file for file in files if not _ids_of(file, False).isdisjoint(ids)]
    rows = [row for file in files for row in _read_file(file, spectra) if ids is None or row.row_id in ids]
    if not rows and ids is None:
        raise UserError(
            f"no results in {folder}",
            mend="run first: python -m probes.run --plugin lp,mlp,nmtune, or name another folder",
        )
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.created, row.row_id)):
        known = first.setdefault(row.row_id, row)
        if known.head_sve is None and row.head_sve is not None:
            first[row.row_id] = row
    return list(first.values())


def rows_folder(folder: Path | str) -> Path:
    """Return the folder of a results folder's row files, made if it is missing."""
    path = Path(folder) / ROWS
    make_folder(path)
    return path


def row_files(folder: Path | str) -> list[Path]:
    """Return the row files of a results folder, sorted; empty if there are none."""
    # The hidden names of files still being written end in another suffix.
    return sorted((Path(folder) / ROWS).glob("[!.]*.parquet"))


def read_ids(folder: Path | str, *, head_spectra: bool = False) -> set[str]:
    """Return the ids of the rows that a results folder has; empty for a new folder.

    Args:
        folder: The results folder.
        head_spectra: Whether to leave out rows that lack the spectrum of their head.
    """
    return {row_id for file in row_files(folder) for row_id in _ids_of(file, head_spectra)}


@functools.cache
def _ids_of(path: Path, head_spectra: bool) -> frozenset[str]:
    # A file is named after its content, so it never has to be read twice.
    table = _read_table(path, columns=["row_id", "head_sve"])
    if head_spectra:
        table = table.filter(pc.is_valid(table["head_sve"]))
    return frozenset(table["row_id"].to_pylist())


def _read_file(path: Path, spectra: dict[bytes, tuple[float, ...]]) -> list[Row]:
    """Read the rows of a file; equal spectra are one tuple, which all rows of a test set then share."""
    table = _read_table(path)
    known = [field.name for field in dataclasses.fields(Row) if field.name in table.column_names]
    records = table.select([name for name in known if name != "singular_values"]).to_pylist()
    rows = []
    for record, values in zip(records, table["singular_values"], strict=True):
        array = values.values.to_numpy(zero_copy_only=False)
        spectrum = spectra.get(array.tobytes())
        if spectrum is None:
            spectrum = spectra[array.tobytes()] = tuple(array.tolist())
        rows.append(Row(**record, singular_values=spectrum))
    _refuse_texts(records, path)
    return rows


def _refuse_texts(records: list[dict[str, Any]], path: Path) -> None:
    """Refuse names that no name is, and records that are none: rows come from elsewhere, too."""
    for record in records:
        for name, value in record.items():
            if isinstance(value, str) and not is_printable(value):
                raise _unreadable(path, f"{name} {shown(value)} holds control characters")
            if isinstance(value, float) and abs(value) > LARGEST:
                raise _unreadable(path, f"{name} is {value}")
        if record["domain"] not in get_args(Domain):
            raise _unreadable(path, f"domain is {shown(record['domain'])}")
        for name, (least, most) in _RANGES.items():
            # As a key, what is not a number is not even equal to itself.
            if record.get(name) is not None and not least <= record[name] <= most:
                raise _unreadable(path, f"{name} is {record[name]}")
        for name in _OBJECTS:
            if record.get(name) and not _is_object(record[name], name):
                raise _unreadable(path, f"{name} {shown(record[name])} is not what it should be")


@functools.lru_cache(maxsize=4096)
def _is_object(text: str, name: str) -> bool:
    try:
        value = parse_json(text)
    except Untrusted:
        return False
    if not isinstance(value, dict):
        return False
    candidates = value.get("candidates", []) if name == "study" else []
    views = value.get("views", 0) if name == "study" else 0
    return (
        isinstance(candidates, list)
        and all(isinstance(each, dict) for each in candidates)
        and isinstance(views, int)
        and views < 2**31
    )


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        check_regular(path)
        with pq.ParquetFile(path) as file:
            found = (file.schema_arrow.metadata or {}).get(b"format", b"none").decode()
            if found == SCHEMA_VERSION:
                if file.metadata.num_rows > _MOST_ROWS:
                    raise _unreadable(path, f"it holds more than {_MOST_ROWS:,} rows")
                table = read_parquet(path, columns, most=_MOST_BYTES)
                table.validate(full=True)
                _check_columns(table, path, columns)
                return table
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    raise UserError(
        f"results file {path}: format {found!r}",
        possible=repr(SCHEMA_VERSION),
        mend="read it with the version of this project that wrote it",
    )


def _check_columns(table: pa.Table, path: Path, columns: list[str] | None) -> None:
    """Hold the columns to the schema; those that came later are missing in older files."""
    optional = {field.name for field in dataclasses.fields(Row) if field.default is not dataclasses.MISSING}
    for field in arrow_schema():
        if field.name not in (columns or table.column_names):
            if columns is None and field.name not in optional - {"singular_values"}:
                raise _unreadable(path, f"it has no column {field.name}")
            continue
        column = table[field.name]
        if column.type != field.type or (column.null_count and not field.nullable):
            raise _unreadable(path, f"{field.name} is {column.type}, {column.null_count} of them missing")


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(f"results file {path} cannot be read: {why}", mend="remove it and run again")


# A study of a thousand heads on a hundred tasks writes some megabytes a file.
_MOST_BYTES = 128 << 20
_MOST_ROWS = 1_000_000
_RANGES = {
    **dict.fromkeys(("noise_ratio", "fraction", "downstream_noise"), (0.0, 1.0)),
    **dict.fromkeys(("fit_seconds", "predict_seconds", "feature_seconds"), (0.0, 1e9)),
    "n_test": (1, 1e12),
}
# So that squares of differences are still numbers.
LARGEST = 1e15
"""Of any number in a row: no result is larger, in either direction."""
# Columns whose texts are JSON.
_OBJECTS = ("hyper_parameters", "selection", "study", "versions", "measures")
LOCK = ".claims"
"""The file whose locked bytes say what processes work on."""


@contextlib.contextmanager
def claim(folder: Path, work: str, *, wait: bool) -> Iterator[bool]:
    """Hold a piece of work alone among all processes that write to ``folder``.

    One byte of one file is locked, chosen by the hash of the work's name (see :mod:`nml.locking`).

    Args:
        folder: The results folder.
        work: What is to be done, the same text in every process.
        wait: Whether to wait for another holder.

    Yields:
        False if another process holds it and ``wait`` is False.
    """
    make_folder(folder)
    with byte_lock(folder / LOCK, int(hash_value(work)[:12], 16), wait=wait) as mine:
        if mine:
            # Rows that another machine wrote before it let go must be seen now.
            look_again(rows_folder(folder))
        yield mine
