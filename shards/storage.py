"""Where a set's files are: a local folder, or an fsspec URL cached file by file on local disk."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from nml.errors import UserError
from nml.set_file import local_folder, read_set_bytes
from nml.urls import take_secret
from shards.remote import RemoteStorage
from shards.set_info import SetInfo, Shard


class SetStorage(Protocol):
    """Gives local paths for the files of a set.

    Attributes:
        location: The folder or URL as it was opened, without a password or signature.
    """

    location: str

    def read_small(self, name: str) -> bytes:
        """Return the bytes of a small file, or raise a UserError that there is no set."""
        ...

    def bind(self, info: SetInfo) -> None:
        """Take note of what the set's files must hash to."""
        ...

    def check_sizes(self, shards: Iterable[Shard]) -> None:
        """Raise a UserError if a shard is missing or of another size than set.json says."""
        ...

    def local(self, name: str) -> Path:
        """Return a local path of a file, fetching it first if need be."""
        ...


def open_storage(location: str, cache: str | Path | None = None) -> SetStorage:
    """Return the storage of a folder or URL."""
    location = take_secret(location)
    folder = local_folder(location)
    return RemoteStorage(location, cache) if folder is None else LocalStorage(location, folder)


class LocalStorage:
    """A set in a local folder."""

    def __init__(self, location: str, folder: Path) -> None:
        self.location = location
        self._folder = folder

    def read_small(self, name: str) -> bytes:
        """Return the bytes of a small file."""
        return read_set_bytes(self._folder, name)

    def bind(self, info: SetInfo) -> None:
        """Do nothing: local files are read where they are."""

    def check_sizes(self, shards: Iterable[Shard]) -> None:
        """Compare every shard's size; a thousand shards take some milliseconds."""
        for shard in shards:
            check_size(self._folder / shard.name, shard)

    def local(self, name: str) -> Path:
        """Return the file's path."""
        return self._folder / name


def check_size(path: Path, shard: Shard) -> None:
    """Raise a UserError if a shard is missing or of another size than set.json says."""
    try:
        found = path.stat().st_size
    except OSError as error:
        reason = "is missing" if error.errno == errno.ENOENT else str(error.strerror)
        raise UserError(f"{path}: {reason}", mend=_MEND) from error
    if found != shard.bytes:
        raise UserError(f"{path}: has {found:,} bytes, set.json says {shard.bytes:,}", mend=_MEND)


def refuse_url(location: str) -> None:
    """Raise a UserError if a command that works on a local folder was given a URL."""
    if local_folder(location) is None:
        raise UserError(
            f"{location}: this command works on a local folder",
            mend="copy the set to one, and back if it changes",
        )


_MEND = "restore the shard, or write the set again; python -m shards.verify tells what else is wrong"
