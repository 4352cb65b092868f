"""Tables that a user fetched by hand, in the formats that their authors publish them in."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nml.errors import UserError

Row = Mapping[str, Any]

# The files of SemEval-2015 task 1 (PIT-2015) have no header.
PIT_COLUMNS = ("Topic_Id", "Topic_Name", "Sent_1", "Sent_2", "Label", "Sent_1_tag", "Sent_2_tag")


def read_tables(folder: Path) -> Iterator[Row]:
    """Yield the rows of every table in a folder, as mappings from column to value.

    Read are ``.tsv`` and ``.txt`` (tabs, a header, no quotes), ``.csv``, ``.data`` (PIT-2015) and what
    ``datasets`` saved with ``save_to_disk``.

    Raises:
        UserError: If there is no table in the folder, or one cannot be read.
    """
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        yield from _saved(folder)
        return
    found = False
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "state.json").exists():
            found = True
            yield from _saved(path)
        elif path.suffix in _READERS:
            found = True
            yield from _READERS[path.suffix](path)
    if not found:
        raise UserError(f"no table in {folder}", possible=", ".join([*_READERS, "a saved data set"]))


def _saved(folder: Path) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{folder}: the library datasets is not installed",
            mend="pip install 'noisy-model-learning[huggingface]'",
        ) from error
    try:
        data = datasets.load_from_disk(str(folder))
    # Arrow, JSON and the library's own errors.
    except Exception as error:
        raise UserError(f"{folder} cannot be read: {error}", mend="fetch it again") from error
    splits = data.values() if isinstance(data, datasets.DatasetDict) else [data]
    for split in splits:
        yield from split


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _tabs(path: Path) -> Iterator[Row]:
    return _table(path, _Tabs)


def _commas(path: Path) -> Iterator[Row]:
    return _table(path, csv.excel)


def _pit(path: Path) -> Iterator[Row]:
    return _table(path, _Tabs, PIT_COLUMNS)


def _table(path: Path, dialect: type[csv.Dialect], names: tuple[str, ...] | None = None) -> Iterator[Row]:
    try:
        # Some of these files are older than the habit of UTF-8; a wrong letter is no reason to lose a row.
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader: csv.DictReader[str] = csv.DictReader(file, names, dialect=dialect)
            for row in reader:
                short = [name for name, value in row.items() if value is None]
                # PIT-2015 ends its lines with a tab, or not.
                if short and names is None:
                    raise UserError(
                        f"{path}: line {reader.line_num} has no {short[0]}", mend="fetch the file again"
                    )
                yield row
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}", mend="fetch the file again") from error


_READERS = {".tsv": _tabs, ".txt": _tabs, ".csv": _commas, ".data": _pit}
