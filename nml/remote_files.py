"""Files at fsspec URLs: whole, in ranges or from start to end, whatever the connection does.

A server that closes a connection early, or does not answer, is asked again for what is missing; what it
refuses (no such file, no access) is told at once, in one line and without a secret.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from nml.errors import UserError
from nml.set_file import open_file_system
from nml.urls import access_error, told_reason, with_secret, without_secret

# How long to wait before each further try, in seconds.
PAUSES = (0.2, 1.0, 5.0)
# Bytes that are asked for at a time where a file is read on.
AT_ONCE = 8 << 20
_REFUSED = (400, 401, 403, 404, 405, 410, 416)
_T = TypeVar("_T")


def is_url(location: str) -> bool:
    """Whether a location is read by fsspec, and is no path of this machine."""
    return "://" in location


class RemoteFiles:
    """The files of one server or bucket; travels to other processes, where it connects anew.

    Args:
        url: Any URL there, without a secret.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._file_system: Any = None
        self._process = 0
        self._ranges = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file_system": None}

    def read(self, url: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of a file from ``start`` to ``end``.

        Raises:
            UserError: If it cannot be read, or has fewer.
        """

        def once() -> bytes:
            remote = self._connected()
            place = remote._strip_protocol(with_secret(url))
            content: bytes = remote.cat_file(place, start=start or None, end=end)
            if end is not None and len(content) > end - start:
                raise UserError(
                    f"{url}: its server sends whole files where a part of one is asked for",
                    mend="copy the files to this machine, or to a server that knows ranges",
                )
            if end is not None and len(content) != end - start:
                raise OSError(
                    f"{end - start:,} bytes from byte {start:,} were asked for, {len(content):,} came"
                )
            return content

        return self.asked(url, once)

    def size(self, url: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            UserError: If there is none, or its server does not tell.
        """

        def once() -> int:
            remote = self._connected()
            size = remote.info(remote._strip_protocol(with_secret(url)))["size"]
            if size is None:
                raise OSError("the server does not tell how many bytes it has")
            return int(size)

        return self.asked(url, once)

    def check_ranges(self, url: str, size: int) -> None:
        """Raise a UserError if the server sends whole files where parts are asked for; it is asked once."""
        if not self._ranges and size > 1:
            self.read(url, 0, 1)
            self._ranges = True

    def has(self, url: str) -> bool:
        """Whether there is a file, as far as its server tells."""

        def once() -> bool:
            remote = self._connected()
            return bool(remote.exists(remote._strip_protocol(with_secret(url))))

        return self.asked(url, once)

    def find(self, pattern: str) -> list[str]:
        """Return the URLs of the files that a pattern with ``*`` matches, sorted."""

        def once() -> list[str]:
            remote = self._connected()
            remote.invalidate_cache()
            found = remote.glob(remote._strip_protocol(with_secret(pattern)))
            return sorted(without_secret(str(remote.unstrip_protocol(name))) for name in found)

        return self.asked(pattern, once)

    def asked(self, url: str, once: Callable[[], _T]) -> _T:
        """Return what a server answers, asking again where the answer broke off.

        Raises:
            UserError: If it refuses, or breaks off each time.
        """
        for pause in (*PAUSES, None):
            try:
                return once()
            except UserError:
                raise
            # Each file system brings errors of its own, of its client library and of the network below it.
            except Exception as error:
                if pause is None or is_refusal(error):
                    raise access_error(
                        f"{url}: cannot be read", error, "check the URL, its credentials and the network"
                    ) from None
                time.sleep(pause)
        raise AssertionError

    def _connected(self) -> Any:
        # Asynchronous file systems (http, s3, gcs) do not survive a fork.
        if self._file_system is None or self._process != os.getpid():
            self._process = os.getpid()
            self._file_system = open_file_system(self._url)
        return self._file_system


def is_refusal(error: Exception) -> bool:
    """Whether a server has said no, and will say so again."""
    error = told_reason(error)
    return (
        isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "status", None) in _REFUSED
    )


_servers: dict[str, RemoteFiles] = {}


def files_at(url: str) -> RemoteFiles:
    """Return the files of the server or bucket of a URL, connected once a process."""
    parts = urlsplit(url)
    return _servers.setdefault(f"{parts.scheme}://{parts.netloc}", RemoteFiles(url))


class RemotePath:
    """A file or folder at a URL, as far as readers of data need of a path.

    Args:
        url: Where it is, without a secret.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    @property
    def name(self) -> str:
        """Its last part."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self._url.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    def open(self) -> IO[bytes]:
        """Open it for reading, in any order.

        Raises:
            UserError: If there is no such file, or it may not be read.
        """
        return io.BufferedReader(_RangeFile(self._url), AT_ONCE)


AnyPath = Path | RemotePath
"""A file on this machine or at a URL."""


class _RangeFile(io.RawIOBase):
    """A file at a URL that is read range by range, each asked for again where the connection breaks."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._files = files_at(url)
        self._size = self._files.size(url)
        self._files.check_ranges(url, self._size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        return self._position

    def readinto(self, target: Any) -> int:
        end = min(self._position + len(target), self._size)
        if end <= self._position:
            return 0
        content = self._files.read(self._url, self._position, end)
        target[: len(content)] = content
        self._position = end
        return len(content)
