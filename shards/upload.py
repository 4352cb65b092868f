"""A set that is written to an fsspec URL; :mod:`shards.destination` says what lies where."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nml.errors import UserError
from nml.files import user_cache, write_json
from nml.set_file import SET_FILE, connected
from nml.set_file import WORK_FOLDER as WORK
from nml.untrusted import parse_json
from nml.urls import access_error, take_secret
from shards.catalogue import SPOOL
from shards.planning import refuse_other_request
from shards.request import WriteRequest

_MARK = f"{WORK}/request.json"


class RemoteDestination:
    """An fsspec URL. What is unfinished stays in the staging folder of the machine that writes."""

    def __init__(self, url: str, staging: str | Path | None = None) -> None:
        self._url = self.shown = take_secret(url).rstrip("/")
        base = Path(staging).expanduser() if staging else user_cache("writing")
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

    @property
    def spool(self) -> str:
        """Where the images are that lie nowhere by themselves: here, on the machine that made the plan."""
        here = self.work / SPOOL
        return str(here) if here.exists() else f"{self._url}/{WORK}/{SPOOL}"

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is not there."""
        return self._read(name)

    def _read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        remote, root = self._remote()
        with self._told(name, "read"):
            try:
                content: bytes = remote.cat_file(f"{root}/{name}", start=start or None, end=end)
            except FileNotFoundError:
                return None
            if end is not None and len(content) != end - start:
                raise OSError(f"{end - start:,} bytes were asked for and {len(content):,} came")
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
        mark.unlink()

    def publish(self, name: str) -> None:
        """Upload a file, check its size, and remove it here.

        Raises:
            UserError: If it does not arrive whole.
        """
        path = self.staging / name
        # Whoever finds set.json takes the set for whole, so it must not be seen half uploaded.
        target = f"{WORK}/{name}" if name == SET_FILE else name
        self._upload(path, target)
        if name == SET_FILE:
            remote, root = self._remote()
            with self._told(name, "uploaded"):
                remote.mv(f"{root}/{target}", f"{root}/{name}")
        path.unlink()

    def _upload(self, path: Path, name: str) -> None:
        size = path.stat().st_size
        remote, root = self._remote()
        with self._told(name, "uploaded"):
            remote.put_file(str(path), f"{root}/{name}")
            remote.invalidate_cache()
            arrived = remote.info(f"{root}/{name}")["size"]
            if arrived != size:
                raise OSError(f"{size:,} bytes were sent and {arrived:,} arrived")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file that has been uploaded."""
        return self._list("")

    def publish_work(self, name: str, *, keep: bool = False) -> None:
        """Upload a file of unfinished work, and remove it here."""
        self._upload(self.work / name, f"{WORK}/{name}")
        if not keep:
            (self.work / name).unlink()

    def read_work(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return a range of a file of unfinished work, or None if it is not there."""
        return self._read(f"{WORK}/{name}", start, end)

    def work_names(self) -> set[str]:
        """Return the names of the files of unfinished work that have been uploaded."""
        return set(self._list(f"/{WORK}"))

    def remove_work(self, name: str) -> None:
        """Remove a file of unfinished work."""
        remote, root = self._remote()
        with self._told(f"{WORK}/{name}", "removed"), contextlib.suppress(FileNotFoundError):
            remote.rm_file(f"{root}/{WORK}/{name}")

    def release(self) -> None:
        """Remove what is left in the staging folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.staging.rmdir()

    def _list(self, folder: str) -> dict[str, int]:
        remote, root = self._remote()
        with self._told(folder.strip("/"), "listed"):
            remote.invalidate_cache()
            try:
                found = remote.ls(f"{root}{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {Path(file["name"]).name: file["size"] for file in found if file["type"] == "file"}

    def end(self) -> None:
        """Remove the mark and what is left in the staging folder."""
        if self.read(_MARK) is not None:
            remote, root = self._remote()
            with self._told(_MARK, "removed"):
                remote.rm(f"{root}/{WORK}", recursive=True)
        self.release()

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
            self._connected = connected(self._url, "--out")
        return self._connected


def _make_folders(remote: Any, path: str) -> None:
    """Make a folder and those above it, but no bucket: a bucket's name without a slash may be a slip."""
    missing = []
    while "/" in path.strip("/") and not remote.exists(path):
        missing.append(path)
        path = path.rpartition("/")[0]
    for folder in reversed(missing):
        remote.mkdir(folder, create_parents=False)
