"""Lines of cells as plain text in columns: every table that a command prints."""

from __future__ import annotations

from collections.abc import Sequence


def in_columns(lines: Sequence[Sequence[str]], *, text_columns: int | None = None) -> list[str]:
    """Return each line with its cells below those of the others, two spaces apart.

    Args:
        lines: As many cells each; the header is one of them.
        text_columns: Columns that stand to the left, the others, numbers, to the right; None for all.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if text_columns is None or place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
