"""Dividing the work on one results folder among processes, ranks and array members."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nml.files import make_folder
from nml.locking import byte_lock, look_again
from probes.hashing import hash_value
from probes.results.rowfiles import rows_folder

LOCK = ".claims"


@contextlib.contextmanager
def claim(folder: Path, work: str, *, wait: bool) -> Iterator[bool]:
    """Hold a piece of work alone among all processes that write to ``folder``.

    One byte of one file is locked, chosen by the hash of the work's name (see :mod:`nml.locking`).

    Args:
        folder: The results folder.
        work: What is to be done, the same text in every process.
        wait: Whether to wait for another holder.

    Yields:
        False if another process holds it and ``wait`` is False.
    """
    make_folder(folder)
    with byte_lock(folder / LOCK, int(hash_value(work)[:12], 16), wait=wait) as mine:
        if mine:
            # Rows that another machine wrote before it let go must be seen now.
            look_again(rows_folder(folder))
        yield mine
