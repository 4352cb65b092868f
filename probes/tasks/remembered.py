"""Hashes of large data, remembered for as long as its files stay as they are.

The key of features holds the hash of every image. To read 140 GB of ImageNet for it each time a command
starts would take longer than the heads do, so the hash is kept under what the file system says of the files:
paths, sizes, times of last change, inodes. The kernel sets the time of change on every write, and nobody
else can.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from nml.files import user_cache, write_bytes

# Data below this is hashed in well under a second.
WORTH_REMEMBERING = 1 << 28
# File systems keep time to some milliseconds: a file this young could change once more within the same tick.
SETTLED_SECONDS = 2.0


def remembered_hash(files: Iterable[Path], layout: str, compute: Callable[[], str]) -> str:
    """Return ``compute()``, or what it returned when the files were last hashed.

    Args:
        files: All files that the hash follows from.
        layout: What else it follows from, for example which parts of the files.
        compute: Hashes the content.

    Raises:
        UserError: If a file is not there.
    """
    files = list(files)
    before = _state(files, layout)
    if before.size < WORTH_REMEMBERING or time.time_ns() - before.newest < SETTLED_SECONDS * 1e9:
        return compute()
    place = cache_folder() / before.digest
    with contextlib.suppress(OSError):
        found = place.read_text()
        if len(found) == 64:
            return found
    content = compute()
    if _state(files, layout) == before:
        # A home that cannot be written to costs time, nothing else.
        with contextlib.suppress(OSError):
            write_bytes(place, content.encode())
    return content


class _State(NamedTuple):
    """What the file system says of files: a digest of all of it, bytes in all, the last change in ns."""

    digest: str
    size: int
    newest: int


def _state(files: Iterable[Path], layout: str) -> _State:
    digest = hashlib.sha256(layout.encode())
    size, newest = 0, 0
    for file in files:
        try:
            facts = file.stat()
        except OSError as error:
            raise UserError(
                f"--task: {file} cannot be read: {error.strerror}", mend="repair it, or remove it"
            ) from error
        size += facts.st_size
        times = (facts.st_mtime_ns, facts.st_ctime_ns)
        newest = max(newest, *times)
        digest.update(repr((os.fspath(file.absolute()), facts.st_size, facts.st_ino, times)).encode())
    return _State(digest.hexdigest(), size, newest)


def cache_folder() -> Path:
    """Return the folder of what is remembered, in the user's cache; it may not exist yet."""
    return user_cache("hashes")
