"""Bring the images of one shard to this machine that do not lie in local files as they are.

Images behind URLs are fetched, several at a time; images in tables are read again from their row groups, each
of which is read once for a shard. Both go to a file without a name, as large as the shard's images at most,
which is gone with the process that made it.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.remote_files import RemotePath, files_at, is_url
from shards.noise import Integers

# Answers of a server that are waited for at a time.
_THREADS = 16
# Rows of a table in memory at a time, and bytes of it read ahead.
_ROWS = 64
_READ_AHEAD = 1 << 20
# How often tables may be read through without a word.
_TOLD_FROM = 4


class Wanted(NamedTuple):
    """An image to bring.

    Attributes:
        place: Where it goes in the file, in bytes.
        path: File or URL that it lies in.
        leaf: Column of a table that holds it; empty where ``offset`` counts bytes.
        offset: Its first byte, or its row.
        size: Its bytes.
    """

    place: int
    path: str
    leaf: str
    offset: int
    size: int


class Gathered(NamedTuple):
    """Where a shard's images lie now.

    Attributes:
        file: The file of those that were brought; None where none had to be.
        paths: File of each image; empty for ``file``.
        offsets: First byte of each.
    """

    file: IO[bytes] | None
    paths: list[str]
    offsets: list[int]


def gather(
    folder: Path, paths: Sequence[str], leaves: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]
) -> Gathered:
    """Bring what does not lie in a local file as it is.

    Args:
        folder: Where the file is made.
        paths: Files or URLs of the images.
        leaves: Columns of tables that hold them; empty where they are ranges of bytes.
        offsets: First bytes, or rows.
        sizes: Bytes of each.

    Raises:
        UserError: If one cannot be read, or is not of its size any more.
    """
    elsewhere = [bool(leaf) or is_url(path) for path, leaf in zip(paths, leaves, strict=True)]
    if not any(elsewhere):
        return Gathered(None, list(paths), list(offsets))
    brought = [size if away else 0 for size, away in zip(sizes, elsewhere, strict=True)]
    places = list(itertools.accumulate(brought, initial=0))
    wanted = [
        Wanted(*each)
        for away, *each in zip(elsewhere, places, paths, leaves, offsets, sizes, strict=False)
        if away
    ]
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller reads from it
    try:
        _bring(file.fileno(), wanted)
    except BaseException:
        file.close()
        raise
    return Gathered(
        file,
        ["" if away else path for path, away in zip(paths, elsewhere, strict=True)],
        [place if away else offset for place, offset, away in zip(places, offsets, elsewhere, strict=False)],
    )


def _bring(descriptor: int, wanted: Sequence[Wanted]) -> None:
    ranges = [each for each in wanted if not each.leaf]
    cells = sorted(
        (each for each in wanted if each.leaf), key=lambda each: (each.path, each.leaf, each.offset)
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        fetched = [pool.submit(_fetch, descriptor, each) for each in ranges]
        for (path, leaf), group in itertools.groupby(cells, key=lambda each: each[1:3]):
            _read_cells(descriptor, path, leaf, list(group))
        for future in fetched:
            future.result()


def _fetch(descriptor: int, each: Wanted) -> None:
    content = files_at(each.path).read(each.path, each.offset, each.offset + each.size)
    os.pwrite(descriptor, content, each.place)


def _read_cells(descriptor: int, path: str, leaf: str, wanted: Sequence[Wanted]) -> None:
    """Bring images of one column of a table; ``wanted`` in the order of its rows."""
    try:
        # Pre-buffering would keep all that was read until the file is closed, and without a buffer size a
        # column of a row group, which may be gigabytes, is read at once.
        source = RemotePath(path).open() if is_url(path) else path
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=_READ_AHEAD) as table:
            first = 0
            remaining = iter(wanted)
            each = next(remaining, None)
            for group in range(table.num_row_groups):
                after = first + table.metadata.row_group(group).num_rows
                if each is not None and each.offset < after:
                    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[leaf]):
                        column = _bytes_of(batch.column(0))
                        while each is not None and each.offset < first + len(batch):
                            _put(descriptor, each, column[each.offset - first].as_buffer())
                            each = next(remaining, None)
                        first += len(batch)
                        if each is None:
                            return
                first = after
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}",
            mend="mend the source and run the same command again, finished shards are kept",
        ) from error
    raise UserError(
        f"{path}: has {first:,} rows and had more at first",
        mend="the source changed under the writer; start again with a new --out",
    )


def _bytes_of(column: pa.Array) -> pa.Array:
    """Return an array of bytes; of Hugging Face's structs of bytes and paths the former."""
    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _put(descriptor: int, each: Wanted, image: pa.Buffer | None) -> None:
    if image is None or image.size != each.size:
        raise UserError(
            f"{each.path}: the image in row {each.offset:,} has {image.size if image else 0:,} bytes where "
            f"{each.size:,} were found at first",
            mend="the source changed under the writer; start again with a new --out",
        )
    os.pwrite(descriptor, image, each.place)


def tell_of_reading_again(batches: Iterable[pa.RecordBatch], bounds: Integers) -> None:
    """Tell where shards draw from so many row groups that tables are read through many times.

    Args:
        batches: Rows with ``path`` and ``leaf``.
        bounds: Shard boundaries, int64 [shards + 1].
    """
    tables: set[str] = set()
    for batch in batches:
        tables.update(pc.unique(batch["path"].filter(pc.not_equal(batch["leaf"], ""))).to_pylist())
    groups = 0
    for path in tables:
        with pq.ParquetFile(RemotePath(path).open() if is_url(path) else path) as table:
            groups += table.num_row_groups
    if not groups:
        return
    # A shard's n samples are any n: each of G row groups is met with probability 1 - (1 - 1 / G) ** n.
    times = round(float(np.sum(1 - (1 - 1 / groups) ** np.diff(bounds))))
    if times >= _TOLD_FROM:
        print(
            f"every shard draws from all over the tables: their {groups:,} row groups will be read about "
            f"{times:,} times; --spool keeps their images on the disk of --out while the set is written, "
            "and reads them once",
            file=sys.stderr,
        )
