"""Reading encoded images from where they lie, in any order and from several threads."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.parquet import MOST_BYTES, MOST_TIMES
from nml.remote_files import RemotePath, files_at, is_url
from nml.sources import Cell, Place

# Row groups of a table's images that are kept decompressed.
GROUPS_IN_MEMORY = 4
# Rows whose images are decompressed before their bytes are counted.
_AT_ONCE = 64


class StoredImages:
    """N encoded images somewhere on disk.

    Args:
        places: Where each lies.
        spool: The file that ranges without a path lie in.
    """

    def __init__(self, places: Sequence[Place], spool: IO[bytes] | None = None) -> None:
        self.places = places
        self._spool = spool
        self._columns: dict[tuple[str, str], _Column] = {}
        self._lock = threading.Lock()

    @cached_property
    def files(self) -> list[Path]:
        """The files that hold them, each once; none where some lie in the spool."""
        paths = dict.fromkeys(place.path for place in self.places)
        return [] if "" in paths else [Path(path) for path in paths]

    @cached_property
    def layout(self) -> str:
        """Which parts of the files they are; with the files' content it says what the images are."""
        digest = hashlib.sha256()
        for path, *where in self.places:
            digest.update(f"{os.path.basename(path)}\0{where}\0".encode(errors="surrogateescape"))  # noqa: PTH119
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        place = self.places[index]
        try:
            if isinstance(place, Cell):
                return self._column(place)[place.row]
            if not place.path and self._spool is not None:
                return os.pread(self._spool.fileno(), place.size, place.offset)
            if is_url(place.path):
                return files_at(place.path).read(place.path, place.offset, place.offset + place.size)
            with Path(place.path).open("rb") as file:
                file.seek(place.offset)
                return file.read(place.size)
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{place.path} cannot be read: {reason}", mend="repair it, or remove it"
            ) from error

    def name(self, index: int) -> str:
        """Return where an image is, for an error."""
        place = self.places[index]
        if isinstance(place, Cell):
            return f"in row {place.row} of {place.path}"
        if not place.path:
            return f"number {index}"
        return f"at byte {place.offset} of {place.path}" if place.offset else place.path

    def _column(self, place: Cell) -> _Column:
        with self._lock:
            return self._columns.setdefault(place[:2], _Column(*place[:2]))


class _Column:
    """A leaf of bytes of a Parquet file, read a row group at a time."""

    def __init__(self, path: str, column: str) -> None:
        self._path = path
        self._leaf = column
        self._file = pq.ParquetFile(RemotePath(path).open() if is_url(path) else path, memory_map=True)
        counts = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._ends = list(itertools.accumulate(counts))
        self._lock = threading.Lock()
        self._groups: dict[int, pa.ChunkedArray] = {}

    def __getitem__(self, row: int) -> bytes:
        number = bisect.bisect_right(self._ends, row)
        data: bytes = self._group(number)[row - (self._ends[number - 1] if number else 0)].as_py()
        return data

    def _read(self, number: int) -> pa.ChunkedArray:
        """Return a row group; what repeats is stored once, and a small file may stand for gigabytes."""
        group = self._file.metadata.row_group(number)
        stored = sum(group.column(place).total_compressed_size for place in range(group.num_columns))
        most, read = MOST_BYTES + MOST_TIMES * stored, []
        for batch in self._file.iter_batches(_AT_ONCE, row_groups=[number], columns=[self._leaf]):
            read.append(batch.column(0))
            most -= batch.nbytes
            if most < 0:
                # Errors of several threads are kept, and with each its frame.
                read.clear()
                raise UserError(
                    f"{self._path}: row group {number} would be more than {MOST_BYTES:,} bytes in memory",
                    mend="if it is yours to trust, write it with smaller row groups",
                )
        return pa.chunked_array(read)

    def _group(self, number: int) -> pa.ChunkedArray:
        # Samples are asked for about in order, by a few threads: the group before may still be in use.
        with self._lock:
            if number not in self._groups:
                while len(self._groups) >= GROUPS_IN_MEMORY:
                    del self._groups[next(iter(self._groups))]
                column = self._read(number)
                self._groups[number] = (
                    pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
                )
            return self._groups[number]
