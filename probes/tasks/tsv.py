"""Tab-separated texts, and whether their first line names the columns or is a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml.errors import UserError
from probes.tasks.assembling import RawSplit
from probes.tasks.columns import LABEL_COLUMNS, PAIR_COLUMNS, TEXT_COLUMNS, find_column, unreadable
from probes.tasks.samplesets import Texts


def read_tsv(path: str, columns: Mapping[str, str]) -> RawSplit:
    """Read one split of texts, or of pairs of them.

    Args:
        path: The file.
        columns: Options: the columns ``text``, ``pair`` and ``label``, and ``header=yes`` or ``no``.

    Raises:
        UserError: If the file cannot be read, a column is missing, lines differ in their columns, or the
            first line may as well be a header as a sample.
    """
    rows = _rows(path)
    if _has_header(path, rows, columns):
        header, rows = rows[0], rows[1:]
        label, places = _places(path, header, columns)
        width = len(header)
    else:
        header = None
        width = len(rows[0])
        label, places = width - 1, list(range(width - 1))
    if not rows:
        raise UserError(f"--task: no samples in {path}")
    for number, row in enumerate(rows, start=2 if header else 1):
        if len(row) != width or width < 2:
            raise UserError(
                f"--task: line {number} of {path} has {len(row)} columns", possible=str(max(width, 2))
            )
    texts = [row[places[0]] if len(places) == 1 else tuple(row[place] for place in places) for row in rows]
    labels: list[Any] = [row[label] for row in rows]
    if all(value.isdigit() for value in labels):
        labels = [int(value) for value in labels]
    keys = [f"{number:08d}" for number in range(len(rows))]
    return RawSplit(keys, labels, None, "text", lambda codes: Texts(keys, codes, texts))


def _rows(path: str) -> list[list[str]]:
    # Not the csv module: it refuses texts of more than 131,072 characters, and without quotes parses nothing.
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            rows = [line.rstrip("\n").split("\t") for line in file if line != "\n"]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    if not rows:
        raise UserError(f"--task: no samples in {path}")
    return rows


def _places(path: str, header: Sequence[str], columns: Mapping[str, str]) -> tuple[int, list[int]]:
    """Return the column of the label and those of the texts."""
    label = _place(path, header, columns.get("label"), LABEL_COLUMNS, "label")
    others = [name for place, name in enumerate(_usual(header)) if place != label]
    # What stands beside the label in a file of two columns is the text, whatever it is called.
    text = _place(path, header, columns.get("text"), others if len(others) == 1 else TEXT_COLUMNS, "text")
    if "pair" in columns or (len(others) > 1 and not {*PAIR_COLUMNS}.isdisjoint(others)):
        return label, [text, _place(path, header, columns.get("pair"), PAIR_COLUMNS, "pair")]
    return label, [text]


def _place(path: str, header: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> int:
    names = header if asked else _usual(header)
    return names.index(find_column(path, names, asked, usual, what))


def _usual(header: Sequence[str]) -> list[str]:
    """Return the names, those of usual columns in lower case: ``Label`` is as clear as ``label``."""
    usual = {*TEXT_COLUMNS, *PAIR_COLUMNS, *LABEL_COLUMNS}
    return [name.lower() if name.lower() in usual and name.lower() not in header else name for name in header]


def _has_header(path: str, rows: Sequence[Sequence[str]], columns: Mapping[str, str]) -> bool:
    said = columns.get("header")
    if said not in (None, "yes", "no"):
        raise UserError(f"--task: header {said}", possible="yes, no")
    asked = [name for name in ("text", "pair", "label") if name in columns]
    if said == "no" and asked:
        raise UserError(
            f"--task: {asked[0]}={columns[asked[0]]} and header=no: without a header no column has a name",
            mend="leave out one of the two",
        )
    if said or asked:
        return said != "no"
    first, names = rows[0], _usual(rows[0])
    if len({*TEXT_COLUMNS, *LABEL_COLUMNS} & {*names}) > 1:
        return True
    later = Counter(row[-1] for row in rows[1:])
    # A class may be called "target": other samples share it. A text may be the one word "class": texts seldom
    # repeat, and labels do.
    label = next((place for place, name in enumerate(names) if name in LABEL_COLUMNS), None)
    if label is not None and first[-1] not in later:
        values = {row[label] for row in rows[1:] if len(row) > label}
        if label == len(first) - 1 or len(values) < len(later):
            return True
    _refuse_likely_header(path, first, later)
    return False


def _refuse_likely_header(path: str, first: Sequence[str], later: Counter[str]) -> None:
    """Refuse a first line whose label is unlike all others, which would silently be one class more."""
    label = first[-1]
    unlike_numbers = bool(later) and not label.isdigit() and all(value.isdigit() for value in later)
    # A rare class can come first by chance; where other classes have few samples, too, that is likely.
    alone = len(later) > 1 and not label.isdigit() and label not in later and min(later.values()) > 1
    if unlike_numbers or alone:
        raise UserError(
            f"--task: line 1 of {path} may be a header: no other line has its label {label!r}",
            possible="header=yes, header=no",
            mend=f"say which, or name the label column: ...,label={label}",
        )
