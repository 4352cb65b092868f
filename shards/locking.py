"""One process at a time changes a set. The lock is on the folder, and goes with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nml.errors import UserError
from nml.files import make_folder

# In a work folder: whoever packs a shard holds the byte of its number.
PACKING_LOCK = "packing.lock"


@contextlib.contextmanager
def existing_locked(folder: Path) -> Iterator[None]:
    """Wait until no other process changes the set in ``folder``, and keep others out.

    Raises:
        UserError: If there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", mend="name the folder of a shard set") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def made_and_locked(folder: Path, *, shown: str, wait: bool) -> Iterator[None]:
    """Make ``folder`` and keep a second writer out of it; remove it again if it ends up empty.

    Args:
        folder: What to lock.
        shown: What a message names.
        wait: Wait for another process, instead of refusing.

    Raises:
        UserError: If another process holds it, or it cannot be made.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    descriptor = _open_locked(folder, shown, wait)
    try:
        yield
    finally:
        for each in created:
            with contextlib.suppress(OSError):
                each.rmdir()
        os.close(descriptor)


def _open_locked(folder: Path, shown: str, wait: bool) -> int:
    while True:
        try:
            make_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made: {error.strerror}", mend="name a folder you may write to"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"--out {shown}: another process is writing there", mend="wait for it, or end it"
            ) from error
        # Who held the lock before may have removed the folder, empty, on its way out.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)
