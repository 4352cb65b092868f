"""Text tables: values quoted as spreadsheets do it, between commas or tabs; or between tabs, unquoted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nml.errors import UserError
from nml.files import check_regular
from nml.remote_files import AnyPath

# The csv module's own limit of 131,072 characters is less than some texts have.
_LONGEST = 1 << 30
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class UnreadableTable(UserError):
    """A file of a table that cannot be read, or not to its end."""


class Line(NamedTuple):
    """One row of a file: the number of the line that it ends on, and its values."""

    number: int
    values: list[str]


def read_lines(file: AnyPath, kind: str, *, errors: str = "strict", encoding: str = "") -> Iterator[Line]:
    """Yield the rows of a ``csv`` or ``tsv`` file, header included and empty lines left out.

    In a table of one column they are refused, but at its end: what lies beside it, row by row, would move.

    Args:
        file: The file.
        kind: Its format; a ``csv`` with tabs and no comma in its first line has tabs for commas.
        errors: What becomes of bytes that are none of the encoding: ``strict`` or ``replace``.
        encoding: How its text is encoded; UTF-8 where empty.

    Raises:
        UnreadableTable: If the file cannot be read, or is not of the encoding.
        UserError: If the encoding is unknown, or an empty line may be a row.
    """
    csv.field_size_limit(_LONGEST)
    try:
        with _opened(file, encoding or "utf-8-sig", errors) as lines:
            first = lines.readline()
            lines.seek(0)
            delimiter = "\t" if "\t" in first and "," not in first else ","
            # A tab-separated text may hold a lone quotation mark.
            reader = (
                csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                if kind == "tsv"
                else csv.reader(lines, strict=True, delimiter=delimiter)
            )
            width = blank = 0
            for values in reader:
                if not values:
                    blank = blank or reader.line_num
                    continue
                if blank and width == 1:
                    # It may be a row whose one value is missing; without it all others move up.
                    raise UserError(
                        f"{file}: line {blank} is empty",
                        possible="empty lines at the end, or in tables of several columns",
                        mend='write an empty value as "", or remove the line',
                    )
                width = width or len(values)
                yield Line(reader.line_num, values)
    except LookupError as error:
        raise UserError(
            f"encoding {encoding}: unknown", possible="a name that Python knows, such as latin-1 or cp1252"
        ) from error
    except UnicodeError as error:
        raise UnreadableTable(
            f"{file}: cannot be read as {encoding or 'UTF-8'}: {error}",
            mend="store the file as UTF-8, or say what it is (shards.write --encoding latin-1)",
        ) from error
    except (OSError, csv.Error) as error:
        raise UnreadableTable(
            f"{file}: cannot be read as {kind}: {error}", mend="check the file and its format"
        ) from error


def comma_separated(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as the text of a csv file that does nothing in a spreadsheet but show its values.

    Names of classes, samples and encoders come from elsewhere: text that would be a formula gets an
    apostrophe in front, by which a spreadsheet knows text. Numbers stay as they are, also negative ones.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_as_text(value) for value in row] for row in rows)
    return text.getvalue()


def _as_text(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _opened(file: AnyPath, encoding: str, errors: str) -> IO[str]:
    if isinstance(file, Path):
        check_regular(file)
        return file.open(encoding=encoding, errors=errors, newline="")
    return io.TextIOWrapper(file.open(), encoding, errors, newline="")
