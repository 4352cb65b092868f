"""Locks that any number of processes share, on one machine or on many with a shared file system.

A lock is one byte of a file, held by the kernel for a process and let go when that dies, however it
dies. Such locks (POSIX record locks) hold on local disks, on NFS 4, on NFS 3 with its lock daemon, on
GPFS, and on Lustre mounted with ``-o flock``. A file system without them is refused, not trusted.

A process holds a byte for as long as it keeps every handle of that file: it must not open the file
another time meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, make_folder

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class NoLocksError(UserError):
    """A file system without file locks."""


@contextlib.contextmanager
def held_alone(folder: Path, *, busy: str) -> Iterator[None]:
    """Make ``folder`` and keep every other process out that asks in the same way.

    A file system without locks is no reason to do no work; it is told on standard error.

    Args:
        folder: What to hold, by a lock on a file in it.
        busy: What another process does there, as a clause.

    Raises:
        UserError: If another process holds it.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(byte_lock(folder / LOCK_FILE, 0, wait=False))
        except NoLocksError as error:
            mine = True
            print(f"warning: {error.what}: nothing keeps a second process out of it", file=sys.stderr)
        if not mine:
            raise UserError(f"{folder}: {busy}", mend="wait for it, or end it")
        yield


@contextlib.contextmanager
def made_beside(path: Path) -> Iterator[Path]:
    """Yield where to make the folder ``path``, hidden beside it; the block ends by renaming it.

    Nothing is left of what was not renamed, nor of what a process that was killed had begun.

    Raises:
        UserError: If another process makes it.
    """
    work = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    with held_alone(work, busy=f"another process is making {path}"):
        shutil.rmtree(work / path.name, ignore_errors=True)
        try:
            yield work / path.name
        finally:
            shutil.rmtree(work, ignore_errors=True)
    # NFS keeps the name of a lock that is held.
    with contextlib.suppress(OSError):
        work.rmdir()


@contextlib.contextmanager
def byte_lock(path: Path, byte: int, *, wait: bool) -> Iterator[bool]:
    """Hold byte number ``byte`` of ``path``, which is made if it is missing, alone among all processes.

    Yields:
        False if another process holds it and ``wait`` is False.

    Raises:
        NoLocksError: If the file system has none.
    """
    with open_lock(path) as file:
        # Closing the file lets go.
        yield _take(file, path, 1, byte, wait=wait)


def is_free(path: Path) -> bool:
    """Whether no process holds any byte of ``path``; true of a file that does not exist, which stays so."""
    try:
        with open_lock(path, make=False) as file:
            # Length 0 is every byte.
            return _take(file, path, 0, 0, wait=False)
    except FileNotFoundError:
        return True


def open_lock(path: Path, *, make: bool = True) -> IO[bytes]:
    """Open a lock's file without changing what is in it.

    Args:
        path: The file.
        make: Whether to make it where it is missing.

    Raises:
        FileNotFoundError: If it is missing and is not to be made.
        UserError: If it is a link, by which another file would be made or held.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags | (os.O_CREAT if make else 0), 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a link, where a lock belongs", mend="remove it") from error


def look_again(folder: Path) -> None:
    """Make a network file system forget what it remembers of the names in ``folder``.

    Its client keeps for seconds that a name does not exist, also after another machine made the file.
    A change of its own makes it ask the server again.
    """
    path = folder / f".look.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    path.touch()
    path.unlink(missing_ok=True)


def _take(file: IO[Any], path: Path, length: int, start: int, *, wait: bool) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise NoLocksError(
            f"the file system of {path.parent} has no file locks ({error.strerror})",
            mend="put the folder on another one; Lustre has them when mounted with -o flock",
        ) from error
    return True
