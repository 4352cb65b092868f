"""Dividing the work on one results folder among processes, ranks and array members."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from probes.hashing import hash_value

LOCK = ".claims"


@contextlib.contextmanager
def claim(folder: Path, work: str, *, wait: bool) -> Iterator[bool]:
    """Hold a piece of work alone among all processes that write to ``folder``.

    One byte of one file is locked, chosen by the hash of the work's name; a killed holder lets go.

    Args:
        folder: The results folder.
        work: What is to be done, the same text in every process.
        wait: Whether to wait for another holder.

    Yields:
        False if another process holds it and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            fcntl.lockf(file, flags, 1, int(hash_value(work)[:12], 16))
        except (BlockingIOError, PermissionError):
            yield False
            return
        yield True
