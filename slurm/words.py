"""What the process of a job says in its log: heard where it can be, and no more than that.

The log may lie on a disk that is full, and its encoding is its user's. Neither may decide what becomes of
a job.
"""

from __future__ import annotations

import contextlib
import os


def say(words: str | bytes) -> None:
    """Write to standard output, past its buffer: what stays in there fails again as the process ends."""
    data = words if isinstance(words, bytes) else f"{words}\n".encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        os.write(1, data)
