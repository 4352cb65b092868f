"""Sets at fsspec URLs, cached file by file on local disk, so that each shard travels once a machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nml.errors import UserError
from nml.files import atomic_writer, make_folder, user_cache
from nml.locking import open_lock
from nml.set_file import MANIFEST_FILE, SET_FILE, open_file_system, read_set_bytes
from nml.urls import access_error, take_secret, with_secret
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo, Shard

CACHE_VARIABLE = "NML_SHARD_CACHE"
_CHUNK = 8 << 20
# The most that the manifest or the index may have: what a server sends without an end must not fill a disk.
_ROOM = 64 << 20
_ROOM_A_SAMPLE = 4096


class RemoteStorage:
    """A set at a URL. Processes of a machine share one cache, and fetch each file once.

    Nothing is ever evicted: the cache grows to the shards that the machine's ranks read.

    Args:
        location: An fsspec URL, for example ``s3://bucket/in1k`` or ``https://host/in1k``.
        cache: Folder of the cache; default ``$NML_SHARD_CACHE``, else
            ``$XDG_CACHE_HOME/noisy-model-learning/shards``.
        urls: Where files lie that do not lie at the location, by name.
    """

    def __init__(
        self, location: str, cache: str | Path | None = None, urls: Mapping[str, str] | None = None
    ) -> None:
        self.location = take_secret(location)
        self._urls = urls or {}
        self._cache = Path(cache or os.environ.get(CACHE_VARIABLE) or user_cache("shards"))
        self._folder = self._cache
        self._sizes: dict[str, int] = {}
        self._file_system: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file_system": None}

    def read_small(self, name: str) -> bytes:
        """Return the bytes of a small file, never from the cache: set.json tells what is current."""
        return read_set_bytes(self.location, name, file_system=self._remote())

    def bind(self, info: SetInfo) -> None:
        """Give each state of a set a cache folder of its own: an added level makes another one.

        A set only claims its fingerprint, so what one server sent never serves for what another has.
        """
        place = hashlib.sha256(self.location.rstrip("/").encode(errors="surrogateescape")).hexdigest()
        self._folder = self._cache / f"{info.fingerprint[:16]}-{place[:16]}"
        self._sizes = {shard.name: shard.bytes for shard in info.shards}
        self._most = _ROOM + _ROOM_A_SAMPLE * info.num_samples * (1 + len(info.levels))
        self._hashes = {MANIFEST_FILE: info.manifest_sha256, INDEX_FILE: info.index_sha256}
        # The statistics are those of the manifest's columns.
        self._versions = {**self._hashes, STATS_FILE: info.manifest_sha256}

    def check_sizes(self, shards: Iterable[Shard]) -> None:
        """Do nothing: each shard is checked when it has been fetched."""

    def local(self, name: str) -> Path:
        """Return the cached file, fetching it first if need be.

        Raises:
            UserError: If it cannot be fetched, or is not of the size that set.json says.
        """
        version = self._versions.get(name)
        path = self._folder / (f"{version[:16]}-{name}" if version else name)
        if self._is_whole(name, path):
            return path
        make_folder(path.parent)
        with open_lock(path.parent / f".{path.name}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_whole(name, path):
                self._fetch(name, path)
        return path

    def _is_whole(self, name: str, path: Path) -> bool:
        """Whether the cache has a file; one cut short later, by a full or failing disk, does not count."""
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            return False
        return found == self._sizes.get(name, found)

    def _fetch(self, name: str, path: Path) -> None:
        expected, digest = self._sizes.get(name), hashlib.sha256()
        most = self._most if expected is None else expected
        update = digest.update if name in self._hashes else None
        with (
            _access_told(
                f"{self._url(name)}: cannot be fetched to {path.parent}",
                f"check the URL, the network and the room in the cache ({CACHE_VARIABLE} moves it)",
            ),
            atomic_writer(path) as file,
        ):
            _copy(self._remote(name), self._url(name), file, most, update)
            # Inside the block: a file that is not what it should be never gets its final name.
            self._check(name, file.tell(), most, digest.hexdigest())

    def _check(self, name: str, size: int, most: int, sha256: str) -> None:
        expected = self._sizes.get(name)
        if expected is not None and size != expected:
            found = f"{size:,} bytes" if size < most else f"more than {most:,} bytes"
            raise UserError(
                f"{self._url(name)}: has {found}, {SET_FILE} says {expected:,}", mend="upload the shard again"
            )
        if size > most:
            raise UserError(
                f"{self._url(name)}: has more than {most:,} bytes, too many for the samples of {SET_FILE}",
                mend="check the URL",
            )
        if sha256 != self._hashes.get(name, sha256):
            raise UserError(
                f"{self._url(name)}: is not what {SET_FILE} says by its SHA-256", mend="upload the set again"
            )

    def _url(self, name: str) -> str:
        return self._urls.get(name) or f"{self.location.rstrip('/')}/{name}"

    def _remote(self, name: str = "") -> Any:
        if name in self._urls:
            return open_file_system(self._urls[name])
        # Asynchronous file systems (http, s3, gcs) do not survive a fork into a loader's worker.
        if self._file_system is None or self._process != os.getpid():
            self._process = os.getpid()
            self._file_system = open_file_system(self.location)
        return self._file_system


def copy_file(url: str, file: IO[bytes], most: int | None = None) -> None:
    """Copy a file at a URL into an open one, and a little more than ``most`` bytes at most.

    Raises:
        UserError: If it cannot be read.
    """
    with _access_told(f"{url}: cannot be read", "check the URL, the network and the room on the disk"):
        _copy(open_file_system(url), url, file, most)


@contextlib.contextmanager
def _access_told(what: str, mend: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Clients of object stores raise types of their own, which may show the URL with its secret.
        raise access_error(what, error, mend) from None


def _copy(
    file_system: Any,
    url: str,
    file: IO[bytes],
    most: int | None,
    update: Callable[[bytes], None] | None = None,
) -> None:
    # As one stream: servers that send no ranges are asked for none.
    as_stream = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
    with file_system.open(with_secret(url), "rb", **as_stream) as remote:
        while (most is None or file.tell() <= most) and (chunk := remote.read(_CHUNK)):
            file.write(chunk)
            if update is not None:
                update(chunk)
