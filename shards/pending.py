"""Replace the files that describe a set all at once, as far as a file system can.

The new ones are written beside the old, set.json last, and then moved into place, set.json last::

    SET/
      .index.arrow.next .manifest.parquet.next .stats.json.next    with one level or more added
      .set.json.next                                               all is there and durable if this is

A kill before the last is there leaves the set as it was; one after it, a set whose old levels read as
before, and which whoever changes it next finishes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nml.files import fsync_folder
from nml.set_file import MANIFEST_FILE, SET_FILE
from shards.set_info import INDEX_FILE, STATS_FILE, parse_set_info

_DESCRIBING = (INDEX_FILE, MANIFEST_FILE, STATS_FILE)


def next_file(folder: Path, name: str) -> Path:
    """Return where the successor of a file of the set in ``folder`` is written."""
    return folder / f".{name}.next"


def is_pending(folder: Path) -> bool:
    """Whether files wait to be moved into place."""
    return next_file(folder, SET_FILE).exists()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Move the files into place that the block wrote to their :func:`next_file`, set.json last of all."""
    try:
        yield
    except BaseException:
        for name in (SET_FILE, *_DESCRIBING):
            next_file(folder, name).unlink(missing_ok=True)
        raise
    finish_pending(folder)


def finish_pending(folder: Path) -> bool:
    """Move the files into place that a killed process left whole; return whether there were any.

    Raises:
        UserError: If their set.json is damaged.
    """
    if not is_pending(folder):
        return False
    ready = next_file(folder, SET_FILE)
    parse_set_info(ready.read_bytes(), str(ready))
    for name in _DESCRIBING:
        if (described := next_file(folder, name)).exists():
            described.replace(folder / name)
    # A set.json must never be there before what it names.
    fsync_folder(folder)
    ready.replace(folder / SET_FILE)
    fsync_folder(folder)
    return True
