"""A table as aligned plain text."""

from __future__ import annotations

from probes.reporting.records import Table


def table_text(table: Table) -> str:
    """Return title, header and rows in columns: text to the left, numbers to the right."""
    lines = [list(table.header), *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    text = [
        "  ".join(
            entry.ljust(width) if column < table.text_columns else entry.rjust(width)
            for column, (entry, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", text[0], rule, *text[1:]])
