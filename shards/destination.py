"""Where a set is written: a local folder, or an fsspec URL that finished files are uploaded to.

Files are always made whole in a local folder, the staging folder. For a local set that is the set's
own folder, and making a file there under its final name is all there is to publishing it. For a URL
it lies in the cache; each file is uploaded when it is whole, its size checked, and removed here::

    URL/
      .writing/request.json   what is being written; removed at the end
      shard-000000.tar ...    as they are finished
      set.json                uploaded last, under a temporary name, and moved: without it there is no set
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from nml.errors import UserError
from nml.files import fsync_folder, write_json
from nml.set_file import SET_FILE, local_folder
from nml.set_file import WORK_FOLDER as WORK
from nml.untrusted import parse_json
from nml.urls import access_error, redacted, take_secret, with_secret
from shards.planning import refuse_other_request
from shards.request import WriteRequest

_MARK = f"{WORK}/request.json"


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
        with os.scandir(self.staging) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def end(self) -> None:
        """Remove the work folder."""
        if self.work.is_dir():
            shutil.rmtree(self.work)
            fsync_folder(self.staging)


class RemoteDestination:
    """An fsspec URL. What is unfinished stays in the staging folder of the machine that writes."""

    def __init__(self, url: str, staging: str | Path | None = None) -> None:
        self._url = self.shown = take_secret(url).rstrip("/")
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        base = Path(staging).expanduser() if staging else Path(cache) / "noisy-model-learning" / "writing"
        # One folder a URL, so that the same command finds what it left.
        self.staging = base / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self.in_process = urlsplit(self._url).scheme == "memory"
        self._connected: tuple[Any, str] | None = None
        self._remote()

    def __getstate__(self) -> dict[str, Any]:
        # A connection does not travel to another process; it is made again there.
        return {**self.__dict__, "_connected": None}

    @property
    def work(self) -> Path:
        """Local folder of unfinished work."""
        return self.staging / WORK

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is not there."""
        remote, root = self._remote()
        with self._told(name, "read"):
            try:
                content: bytes = remote.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            return content

    def refuse_other_content(self, request: WriteRequest) -> None:
        """Raise a UserError if something is there that is not an unfinished write of ``request``."""
        mark = self.read(_MARK)
        if mark is not None:
            refuse_other_request(parse_json(mark), request, self.shown)
        elif self.sizes():
            raise UserError(
                f"--out {self.shown}: is not empty and holds no shard set",
                mend="name a new or an empty place",
            )

    def begin(self, request: WriteRequest) -> None:
        """Say in the place what is being written there; one that cannot be written to shows now."""
        mark = self.work / "request.json"
        write_json(mark, request.as_json())
        remote, root = self._remote()
        with self._told(_MARK, "written"):
            _make_folders(remote, f"{root}/{WORK}")
            remote.put_file(str(mark), f"{root}/{_MARK}")

    def publish(self, name: str) -> None:
        """Upload a file, check its size, and remove it here.

        Raises:
            UserError: If it does not arrive whole.
        """
        path = self.staging / name
        size = path.stat().st_size
        remote, root = self._remote()
        # Whoever finds set.json takes the set for whole, so it must not be seen half uploaded.
        target = f"{root}/{WORK}/{name}" if name == SET_FILE else f"{root}/{name}"
        with self._told(name, "uploaded"):
            remote.put_file(str(path), target)
            remote.invalidate_cache()
            arrived = remote.info(target)["size"]
            if arrived != size:
                raise OSError(f"{size:,} bytes were sent and {arrived:,} arrived")
            if name == SET_FILE:
                remote.mv(target, f"{root}/{name}")
        path.unlink()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file that has been uploaded."""
        remote, root = self._remote()
        with self._told("", "listed"):
            remote.invalidate_cache()
            try:
                found = remote.ls(root, detail=True)
            except FileNotFoundError:
                return {}
        return {Path(file["name"]).name: file["size"] for file in found if file["type"] == "file"}

    def end(self) -> None:
        """Remove the mark and what is left in the staging folder."""
        if self.read(_MARK) is not None:
            remote, root = self._remote()
            with self._told(_MARK, "removed"):
                remote.rm(f"{root}/{WORK}", recursive=True)
        shutil.rmtree(self.work, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.staging.rmdir()

    @contextlib.contextmanager
    def _told(self, name: str, what: str) -> Iterator[None]:
        """Turn whatever a file system raises into one line."""
        try:
            yield
        # Each file system brings errors of its own, of its client library and of the network below it.
        except Exception as error:
            raise access_error(
                f"{self.shown}/{name}: cannot be {what}",
                error,
                "check the URL, its credentials and the network, and run the same command again; "
                "finished shards are kept",
            ) from None

    def _remote(self) -> tuple[Any, str]:
        """Return the file system, and the set's path in it."""
        if self._connected is None:
            import fsspec

            try:
                self._connected = fsspec.core.url_to_fs(with_secret(self._url))
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"--out {self.shown}: {redacted(str(error))}",
                    mend="install fsspec's package for this kind of URL",
                ) from None
            except Exception as error:
                raise access_error(
                    f"--out {self.shown}: cannot be reached", error, "check the URL and the network"
                ) from None
        return self._connected


def _make_folders(remote: Any, path: str) -> None:
    """Make a folder and those above it, but no bucket: a bucket's name without a slash may be a slip."""
    missing = []
    while "/" in path.strip("/") and not remote.exists(path):
        missing.append(path)
        path = path.rpartition("/")[0]
    for folder in reversed(missing):
        remote.mkdir(folder, create_parents=False)
