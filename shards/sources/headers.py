"""Whether the first line of a text table names its columns or is a sample already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nml.delimited import read_lines
from nml.errors import UserError
from nml.remote_files import AnyPath
from nml.sources import ROLES, SourceSpec
from shards.sources.columns import LABEL, known_names


def header(file: AnyPath, spec: SourceSpec) -> list[str] | None:
    """Return the names of a file's columns; None if its first line is a sample already.

    What sets are made of has a header. A task's texts may have none: the last value is the label then. So may
    labels alone, where there is nothing else.

    Raises:
        UserError: If the file is empty, or its first line may as well be a header as a sample.
    """
    if spec.header not in ("", "yes", "no"):
        raise UserError(f"{spec.shown}: header {spec.header}", possible="yes, no")
    lines = read_lines(file, spec.name, encoding=spec.encoding)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{spec.shown}: no samples in {file}")
    asked = [role for role in ROLES if spec.column(role)]
    if spec.header == "no" and asked:
        raise UserError(
            f"{spec.shown}: {spec.flag(asked[0])}{spec.column(asked[0])} and header=no: without a header no "
            "column has a name",
            mend="leave out one of the two",
        )
    if spec.end == "set" or spec.header or asked:
        return None if spec.header == "no" else first.values
    if spec.end == "labels" and len(first.values) > 1:
        if any(name.lower() in LABEL for name in first.values):
            return first.values
        raise UserError(
            f"{spec.shown}: none of the columns {', '.join(first.values)} is a usual name of labels",
            mend="name the column: ...,label=COLUMN; or say header=no, and the last one is read",
        )
    if known_names(first.values) > 1 or _only_header(first.values, [line.values for line in lines], file):
        return first.values
    return None


def _only_header(first: Sequence[str], later: Sequence[Sequence[str]], file: AnyPath) -> bool:
    """Return whether a first line with one usual name at most is a header, by the lines that follow it."""
    labels = Counter(values[-1] for values in later)
    # A class may be called "target": other samples share it. A text may be the one word "class": texts seldom
    # repeat, and labels do.
    place = next((place for place, name in enumerate(first) if name.lower() in LABEL), None)
    if place is not None and first[-1] not in labels:
        values = {values[place] for values in later if len(values) > place}
        if place == len(first) - 1 or len(values) < len(labels):
            return True
    label = first[-1]
    unlike_numbers = bool(labels) and not label.isdigit() and all(value.isdigit() for value in labels)
    # A rare class can come first by chance; where other classes have few samples, too, that is likely.
    alone = len(labels) > 1 and not label.isdigit() and label not in labels and min(labels.values()) > 1
    if unlike_numbers or alone:
        raise UserError(
            f"--task: line 1 of {file} may be a header: no other line has its label {label!r}",
            possible="header=yes, header=no",
            mend=f"say which, or name the label column: ...,label={label}",
        )
    return False
