"""Text tables: values between commas, quoted as spreadsheets do it, or between tabs, without quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError

# The csv module's own limit of 131,072 characters is less than some texts have.
_LONGEST = 1 << 30


class Line(NamedTuple):
    """One row of a file: the number of the line that it ends on, and its values."""

    number: int
    values: list[str]


def read_lines(file: Path, kind: str, *, errors: str = "strict") -> Iterator[Line]:
    """Yield the rows of a ``csv`` or ``tsv`` file, header included and empty lines left out.

    Args:
        file: The file.
        kind: Its format.
        errors: What becomes of bytes that are no UTF-8: ``strict`` or ``replace``.

    Raises:
        UserError: If the file cannot be read, or is no UTF-8.
    """
    csv.field_size_limit(_LONGEST)
    try:
        with file.open(encoding="utf-8-sig", errors=errors, newline="") as lines:
            # A tab-separated text may hold a lone quotation mark.
            reader = (
                csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                if kind == "tsv"
                else csv.reader(lines, strict=True)
            )
            yield from (Line(reader.line_num, values) for values in reader if values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{file}: cannot be read as {kind}: {error}", mend="check the file and its format"
        ) from error
