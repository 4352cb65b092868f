"""Which column of a user's table holds what: the usual names, and what is said where none is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError, unknown_name

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question", "question1")
PAIR_COLUMNS = ("text2", "sentence2", "hypothesis", "question2")
LABEL_COLUMNS = ("label", "cls", "labels", "class", "target", "fine_label")


def find_column(path: str, names: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> str:
    """Return the column that the user asked for, or the first with a usual name.

    Args:
        path: The table, for an error.
        names: Its columns.
        asked: The column that the user named; None for none.
        usual: Names to look for.
        what: What the column holds, its last word the option that names it.

    Raises:
        UserError: If there is no such column.
    """
    if asked is not None:
        if asked not in names:
            raise unknown_name(f"--task: column of {path}", asked, names)
        return asked
    for name in usual:
        if name in names:
            return name
    raise UserError(
        f"--task: no {what} column found in {path}",
        possible=f"columns: {', '.join(names)}",
        mend=f"name it: ...,{what.split()[-1]}=COLUMN",
    )


def unreadable(path: str, error: Exception) -> UserError:
    """Return what to say of a table that cannot be read."""
    if not Path(path).exists():
        return UserError(f"--task: no file {path}", mend="check the path")
    return UserError(f"--task: {path} cannot be read: {error}", mend="check the file's format")
