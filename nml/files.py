"""Files that are whole or absent: temporary name, fsync, rename.

A reader that finds a file under its final name may trust that all of it was written, also after
a ``kill -9`` or a power cut in the middle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"
# What systems say of a place where no file or folder can be made, besides those of rights and of room.
_NO_PLACE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENXIO,
    errno.EOPNOTSUPP,
)


class NoPlace(OSError):
    """Nothing can be made at a place, whoever asks: below a file, in ``/proc``, under too long a name."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or its user's share of it, has no room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def user_cache(name: str) -> Path:
    """Return the folder ``name`` of the project in the user's cache; it may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "noisy-model-learning" / name


def temporary_beside(path: Path) -> Path:
    """Return a fresh hidden name in the folder of ``path``, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def fsync_file(file: Path, *, flags: int = 0) -> None:
    """Make what is written in a file durable; its name is for :func:`fsync_folder`."""
    descriptor = os.open(file, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    fsync_file(folder, flags=os.O_DIRECTORY)


@contextlib.contextmanager
def _making(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_PLACE:
            code = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno
            raise NoPlace(code, os.strerror(code), str(path)) from error
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing; their names are durable when this returns.

    Raises:
        NoPlace: If a file stands in the way, or no folder can be made there.
    """
    with _making(folder):
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        # A folder that one may write to but not list, such as a drop box, cannot be opened.
        with contextlib.suppress(PermissionError):
            fsync_folder(each.parent)


def sync_tree(folder: Path) -> None:
    """Make all files and folders below ``folder``, and their names, durable: before a marker says so."""
    for place, _, files in os.walk(folder):
        # A link is a name, and where it leads is not ours.
        for file in (Path(place, name) for name in files):
            if not file.is_symlink():
                fsync_file(file)
        fsync_folder(Path(place))


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under ``path`` only if the block ends without an error.

    Yields:
        A file open for writing bytes. It is fsynced and renamed on success, removed on failure.

    Raises:
        NoPlace: If no file can be there.
    """
    make_folder(path.parent)
    temporary = temporary_beside(path)
    with _making(path):
        file = temporary.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _making(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_writer(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as sorted, indented UTF-8 JSON. Equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as :func:`json_bytes` gives it, whole or not at all."""
    write_bytes(path, json_bytes(value))


def append_json_line(path: Path, value: Any) -> None:
    """Append ``value`` as a line of sorted JSON, durable when this returns.

    What a crash or a full disk left of a line before it goes: joined to it, neither would read.

    Args:
        path: The file, made where it is missing; its folder has to be there.
        value: What to write. Nobody else may be appending to the file.
    """
    new = not path.exists()
    with path.open("a+b") as file:
        file.seek(0)
        written = file.read()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            file.truncate(whole)
        file.write(json.dumps(value, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        fsync_folder(path.parent)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Put a file under a second name; nothing may write to it any more."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def check_regular(path: Path) -> None:
    """Check that opening a file to read it does not wait, as a pipe does until somebody writes to it.

    Raises:
        OSError: If there is none, or it is a pipe or a device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of the bytes of a regular file."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_utf8(name: str) -> bool:
    """Whether a name of a file system can be stored as text; Python keeps bytes that are none in halves."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
