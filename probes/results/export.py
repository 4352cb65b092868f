"""Rows chosen by conditions, grouped, and written as text, CSV or LaTeX."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from nml.delimited import comma_separated
from nml.errors import UserError, unknown_name
from nml.text_table import in_columns
from probes.results.row import Row, arrow_schema

COLUMNS = (
    "row_id",
    "encoder",
    "noise_ratio",
    "task",
    "dataset",
    "domain",
    "head",
    "fraction",
    "seed",
    "downstream_noise",
    "accuracy",
    "macro_f1",
    "metric_name",
    "metric",
    "nll",
    "ece",
    "sve",
    "head_sve",
    "lsvr",
    "head_lsvr",
)
FIELDS = tuple(field.name for field in dataclasses.fields(Row))
NUMBERS = tuple(
    field.name
    for field in arrow_schema()
    if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
)
# How a condition names a value that is not known.
UNKNOWN = "none"

_CONDITION = re.compile(r"(?P<field>\w+)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def check_columns(columns: Sequence[str]) -> Sequence[str]:
    """Return ``columns`` if all are fields of a row.

    Raises:
        UserError: Names the first that is not, and near matches.
    """
    for column in columns:
        if column not in FIELDS:
            raise unknown_name("--columns", column, FIELDS)
    return columns


def select(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Return the rows that meet every condition, for example ``head=nmtune`` or ``fraction>=0.5``.

    What is not known equals ``none``, and no ordering holds for it.

    Raises:
        UserError: If a condition cannot be read or names no field.
    """
    tests = [_condition(text) for text in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def _condition(text: str) -> Callable[[Row], bool]:
    match = _CONDITION.fullmatch(text.strip())
    if not match:
        raise UserError(f"--where {text}", possible="FIELD=VALUE, also != < <= > >=")
    if match["field"] not in FIELDS:
        raise unknown_name("--where: field", match["field"], FIELDS)
    name, sign, wanted = match["field"], match["sign"], match["value"]
    compare, equality = _COMPARE[sign], sign in ("=", "!=")
    # The field decides what is compared, not the row: a ratio is a number also where it is not known.
    numeric = name in NUMBERS and not (equality and wanted == UNKNOWN)
    number = _number(text, wanted) if numeric else None

    def test(row: Row) -> bool:
        found = getattr(row, name)
        if found is None:
            # What is not known is neither more nor less than anything.
            return equality and compare(UNKNOWN, wanted)
        return compare(found, number) if numeric else compare(str(found), wanted)

    return test


def _number(text: str, wanted: str) -> float:
    try:
        return float(wanted)
    except ValueError as error:
        raise UserError(f"--where {text}: {wanted!r} is no number") from error


def as_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return an aligned table."""
    lines = [list(columns), *([_short(getattr(row, column)) for column in columns] for row in rows)]
    return "\n".join(in_columns(lines))


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return CSV with a header; numbers in full precision."""
    lines = [[getattr(row, column) for column in columns] for row in rows]
    return comma_separated(
        [
            columns,
            *([repr(value) if isinstance(value, float) else value for value in line] for line in lines),
        ]
    ).rstrip("\n")


def as_latex(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a ``tabular`` for the booktabs package."""
    body = [
        " & ".join(escape_latex(_short(getattr(row, column))) for column in columns) + r" \\" for row in rows
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(columns)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"[{len(value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def escape_latex(text: str) -> str:
    """Return text that LaTeX shows as it is, as far as it is ASCII."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


FORMATS = {"text": as_text, "csv": as_csv, "latex": as_latex}
