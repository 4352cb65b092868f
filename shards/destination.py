"""Where a set is written: a local folder, or an fsspec URL that finished files are uploaded to.

Files are always made whole in a local folder, the staging folder. For a local set that is the set's
own folder, and making a file there under its final name is all there is to publishing it. For a URL
it lies in the cache; each file is uploaded when it is whole, its size checked, and removed here::

    URL/
      .writing/request.json   what is being written; removed at the end
      .writing/...            the plan and the records of finished shards, for whoever packs its shards
      shard-000000.tar ...    as they are finished
      set.json                uploaded last, under a temporary name, and moved: without it there is no set
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Protocol

from nml.errors import UserError
from nml.files import fsync_folder
from nml.set_file import WORK_FOLDER as WORK
from nml.set_file import local_folder
from shards.catalogue import SPOOL
from shards.request import WriteRequest


class Destination(Protocol):
    """Where the files of a set go; picklable, so that a worker can publish the shards it packed.

    Attributes:
        shown: The folder or URL as messages name it, without a password.
        staging: Local folder that files are made in.
        in_process: Whether only the process that opened it can publish.
    """

    shown: str
    staging: Path
    in_process: bool

    @property
    def work(self) -> Path:
        """Local folder of unfinished work."""
        return self.staging / WORK

    @property
    def spool(self) -> str:
        """File or URL of the images that lie nowhere by themselves."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is not there."""
        ...

    def refuse_other_content(self, request: WriteRequest) -> None:
        """Raise a UserError if something is there that is not a write of ``request``."""
        ...

    def begin(self, request: WriteRequest) -> None:
        """Mark the place as being written."""
        ...

    def publish(self, name: str) -> None:
        """Make a file, whole in the staging folder, a file of the set."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file that has been published."""
        ...

    def publish_work(self, name: str, *, keep: bool = False) -> None:
        """Make a file, whole in the local work folder, one that every process which packs can read.

        Args:
            name: The file.
            keep: Whether it stays in the local work folder as well.
        """
        ...

    def read_work(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return a range of a file of unfinished work, or None if it is not there."""
        ...

    def work_names(self) -> set[str]:
        """Return the names of the files of unfinished work that every process can read."""
        ...

    def remove_work(self, name: str) -> None:
        """Remove a file of unfinished work."""
        ...

    def release(self) -> None:
        """Remove here what other processes find elsewhere."""
        ...

    def end(self) -> None:
        """Remove what only a write in progress needs."""
        ...


def open_destination(out: str | Path, staging: str | Path | None = None) -> Destination:
    """Return the destination that ``--out`` names.

    Args:
        out: A folder, or an fsspec URL.
        staging: For a URL, the local folder that files are made in; default
            ``$XDG_CACHE_HOME/noisy-model-learning/writing``.

    Raises:
        UserError: If nothing installed can write to such a URL, or a folder was given a staging folder.
    """
    folder = local_folder(out)
    if folder is None:
        from shards.upload import RemoteDestination

        return RemoteDestination(str(out), staging)
    if staging:
        raise UserError(
            f"--staging {staging}: --out {folder} is a local folder, whose files are made in place",
            mend="leave it out",
        )
    return LocalDestination(folder)


class LocalDestination:
    """A local folder."""

    in_process = False

    def __init__(self, folder: Path) -> None:
        self.shown = str(folder)
        self.staging = folder

    @property
    def work(self) -> Path:
        """Local folder of unfinished work."""
        return self.staging / WORK

    @property
    def spool(self) -> str:
        """File of the images that lie nowhere by themselves."""
        return str(self.work / SPOOL)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is not there."""
        try:
            return (self.staging / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def refuse_other_content(self, request: WriteRequest) -> None:  # noqa: ARG002 - the plan names its request
        """Raise a UserError if there is a file, or a folder with something in it that is not ours."""
        folder = self.staging
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: is a file", mend="name a folder")
        if not self.work.is_dir() and folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"--out {folder}: is not empty and holds no shard set", mend="name a new or an empty folder"
            )

    def begin(self, request: WriteRequest) -> None:
        """Do nothing: the work folder is the mark."""

    def publish(self, name: str) -> None:
        """Do nothing: the file is in its place."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file."""
        found = {}
        with os.scandir(self.staging) as entries:
            for entry in entries:
                # Others may be making files there, which are renamed.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def publish_work(self, name: str, *, keep: bool = False) -> None:
        """Do nothing: the work folder is where every process finds it."""

    def read_work(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return a range of a file of unfinished work, or None if it is not there."""
        try:
            with (self.work / name).open("rb", buffering=0) as file:
                file.seek(start)
                return file.read() if end is None else _read(file, end - start)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def work_names(self) -> set[str]:
        """Return the names of the files in the work folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.work) as entries:
            return {entry.name for entry in entries}
        return set()

    def remove_work(self, name: str) -> None:
        """Remove a file from the work folder."""
        (self.work / name).unlink(missing_ok=True)

    def release(self) -> None:
        """Do nothing: all is where every process finds it."""

    def end(self) -> None:
        """Remove the work folder."""
        if self.work.is_dir():
            shutil.rmtree(self.work)
            fsync_folder(self.staging)


def _read(file: io.FileIO, size: int) -> bytes:
    """Return the next ``size`` bytes of a file, which the system may give in several parts."""
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
