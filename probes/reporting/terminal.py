"""A table as aligned plain text."""

from __future__ import annotations

from nml.text_table import in_columns
from probes.reporting.records import Table


def table_text(table: Table) -> str:
    """Return title, header and rows in columns: text to the left, numbers to the right."""
    lines = [table.header, *([cell.text for cell in row] for row in table.rows)]
    header, *rows = in_columns(lines, text_columns=table.text_columns)
    rule = "  ".join("-" * max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join([table.title, "", header, rule, *rows])
