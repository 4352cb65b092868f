"""Columns of many million keys or captions, read without making them one array or one list."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shards.hashing import Hashes, hash_keys
from shards.noise import Integers

# Rows handled at a time.
BATCH = 65_536


class KeyColumn:
    """A column of keys as a sequence, without turning millions of them into Python strings at once."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> str:
        return str(self._column[row].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.iterchunks():
            yield from chunk.to_pylist()


def take_rows(column: pa.ChunkedArray, rows: Integers) -> pa.ChunkedArray:
    """Return ``rows`` of a column, in their order, a batch of rows a chunk.

    Arrow's own take joins all chunks first, which copies the whole column for every shard and fails
    where its text is 2 GiB or more.

    Args:
        column: N values in any number of chunks.
        rows: Numbers below N, int64 [n], in any order.
    """
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    return pa.chunked_array(
        [_take_batch(column, ends, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)],
        column.type,
    )


def _take_batch(column: pa.ChunkedArray, ends: Integers, rows: Integers) -> pa.Array:
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    bounds = np.searchsorted(ascending, np.concatenate([[0], ends]))
    parts = [
        chunk.take(pa.array(ascending[first:last] - (end - len(chunk))))
        for chunk, end, first, last in zip(column.chunks, ends, bounds[:-1], bounds[1:], strict=True)
        if last > first
    ]
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return pa.concat_arrays(parts).take(pa.array(back))


def hash_column(column: pa.ChunkedArray) -> Hashes:
    """Return the 64-bit hash of every string of a column, uint64 [N]."""
    parts = [hash_keys(chunk.to_pylist()) for chunk in column.iterchunks()]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
