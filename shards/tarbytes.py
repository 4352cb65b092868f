"""The bytes of a tar by their place; of one compressed by gzip, or at a URL, as far as they are asked for."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

from nml.errors import UserError
from nml.remote_files import AnyPath, RemotePath

_GZIP = b"\x1f\x8b"
# How files begin that other programs compressed; none of them can be told from a damaged tar otherwise.
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_AT_ONCE = 1 << 20
# Headers and padding of small samples shrink to a twentieth, images hardly at all; a bomb to a thousandth.
_MOST_TIMES = 100
_ALLOWANCE = 64 << 20


class TarBytes:
    """A tar that is open for reading.

    Attributes:
        path: The file.
        descriptor: What its bytes are read from, uncompressed, as far as :meth:`reach` has said.
        compressed: Whether they lie in no file that stays.

    Raises:
        UserError: If it cannot be read, or is compressed by another program than gzip.
    """

    def __init__(self, path: str | AnyPath) -> None:
        self.path = path
        try:
            self._packed = _opened(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        head = self._packed.read(8)
        self._packed.seek(0)
        program = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
        if program:
            self._packed.close()
            raise UserError(
                f"{path}: is compressed by {program}", possible="tars, and tars compressed by gzip"
            )
        self.compressed = head.startswith(_GZIP)
        self._stream: IO[bytes] | gzip.GzipFile | None = self._packed
        if self.compressed:
            self._stream = gzip.GzipFile(fileobj=self._packed)
        if self.compressed or isinstance(path, RemotePath):
            # Without a name: it is gone when this is closed, however the process ends.
            with tempfile.TemporaryFile() as passing:
                self.descriptor = os.dup(passing.fileno())
            self._size = 0
        else:
            self.descriptor = os.dup(self._packed.fileno())
            self._size = os.fstat(self.descriptor).st_size
            self._stream = None

    def __enter__(self) -> TarBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        self._packed.close()

    def reach(self, end: int) -> bool:
        """Return whether the tar has ``end`` bytes; they can be read then.

        Raises:
            UserError: If what is compressed is damaged or cut short, or grows beyond all measure.
        """
        while self._size < end and self._stream is not None:
            try:
                more = self._stream.read(_AT_ONCE)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(
                    f"{self.path}: damaged after {self._size:,} bytes of the tar in it: {error}",
                    mend="fetch or write the tar again",
                ) from error
            if not more:
                self._stream = None
                break
            if self.compressed and self._size + len(more) > _ALLOWANCE + _MOST_TIMES * self._packed.tell():
                raise UserError(
                    f"{self.path}: unpacks to more than {_MOST_TIMES} times its size",
                    mend="if it is yours to trust, unpack it with gunzip and name the tar",
                )
            rest = memoryview(more)
            while rest:
                written = os.pwrite(self.descriptor, rest, self._size)
                self._size += written
                rest = rest[written:]
        return self._size >= end


def _opened(path: str | AnyPath) -> IO[bytes]:
    return path.open() if isinstance(path, RemotePath) else Path(path).open("rb", buffering=0)
