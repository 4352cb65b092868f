"""Tables that a user fetched by hand, in the formats that their authors publish them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nml.delimited import Line, read_lines
from nml.errors import UserError, import_extra

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
    datasets = import_extra("datasets", "huggingface", str(folder))
    try:
        data = datasets.load_from_disk(str(folder))
    # Arrow, JSON and the library's own errors.
    except Exception as error:
        raise UserError(f"{folder} cannot be read: {error}", mend="fetch it again") from error
    splits = data.values() if isinstance(data, datasets.DatasetDict) else [data]
    for split in splits:
        yield from split


def _table(path: Path, kind: str, names: Sequence[str] = ()) -> Iterator[Row]:
    # Some of these files are older than the habit of UTF-8; a wrong letter is no reason to lose a row.
    lines = read_lines(path, kind, errors="replace")
    header = names or next(lines, Line(0, [])).values
    for number, values in lines:
        # PIT-2015 ends its lines with a tab, or not.
        if len(values) < len(header) and not names:
            raise UserError(
                f"{path}: line {number} has no {header[len(values)]}", mend="fetch the file again"
            )
        yield dict(zip(header, values, strict=False))


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": partial(_table, kind="tsv"),
    ".txt": partial(_table, kind="tsv"),
    ".csv": partial(_table, kind="csv"),
    ".data": partial(_table, kind="tsv", names=PIT_COLUMNS),
}
