"""Errors that are the user's to mend, told in one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

MOST_NAMES = 60
"""Possible names that a message shows: a library of models has more than a line holds."""


class UserError(Exception):
    """A mistake in what the user asked for, or in what a file of theirs holds.

    Command lines print the message as one line, ``error: ...``, and exit with status 2; no
    traceback is shown. Library callers can catch it as any other exception.

    Args:
        what: The thing that is wrong and the value found, for example ``--noise 1.2``.
        possible: The values that would have been right, as prose; may be empty.
        mend: What to do about it, in the imperative; may be empty.
    """

    def __init__(self, what: str, *, possible: str = "", mend: str = "") -> None:
        self.what = what
        self.possible = possible
        self.mend = mend
        parts = [what]
        if possible:
            parts.append(f"possible: {possible}")
        if mend:
            parts.append(mend)
        # A path or a third party's message may hold newlines; the promise is one line.
        super().__init__(" ".join("; ".join(parts).split()))


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return a module that only an extra installs.

    Args:
        module: The module.
        extra: Name of the extra.
        what: What needs it, for the error.

    Raises:
        UserError: If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what}: the package {module} is not installed",
            mend=f"pip install 'noisy-model-learning[{extra}]'",
        ) from error


def some(names: Sequence[str], most: int) -> str:
    """Return the first ``most`` names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unknown_name(what: str, found: str, known: Iterable[str], *, mend: str = "") -> UserError:
    """Build the error for a name that is not among ``known``, naming near matches first.

    Args:
        what: The field or flag that held the name, for example ``--plugin``.
        found: The name that was not found.
        known: Every name that would have been accepted.
        mend: Where to look further, for example ``see: python -m plugins list``.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(found, names, n=3, cutoff=0.6)
    possible = ", ".join(names[:MOST_NAMES]) if names else "none"
    if len(names) > MOST_NAMES:
        possible += f", ... ({len(names)} in all)"
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    return UserError(
        f"{what}: unknown name {found!r}",
        possible=possible,
        mend="; ".join(part for part in (hint, mend) if part),
    )
