"""Several captions a sample: list columns, and their captions one after another, each with its own place.

A noise plan is made over captions, not over samples: the first of a sample has the sample's key, the others
``KEY/1``, ``KEY/2`` and so on, so that a set whose samples have one caption each is planned as it always was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.arrow_columns import BATCH, hash_column
from shards.hashing import Hashes, hash_keys
from shards.noise import Integers, Population

LISTS = pa.list_(pa.string())


def flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the captions of a column one after another; a column of one each as it is."""
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def starts_of(column: pa.ChunkedArray) -> Integers:
    """Return where the captions of each sample begin among all, and where the last end, int64 [N + 1]."""
    if not pa.types.is_list(column.type):
        return np.arange(len(column) + 1, dtype=np.int64)
    lengths = pc.list_value_length(column).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def owners_of(starts: Integers) -> Integers:
    """Return the sample that each caption is of, int64 [captions]."""
    return np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))


def caption_hashes(keys: Iterable[str], hashes: Hashes, starts: Integers) -> Hashes:
    """Return the hash of each caption's own key, uint64 [captions].

    Args:
        keys: Keys of the samples.
        hashes: Their hashes, uint64 [N].
        starts: As :func:`starts_of` gives them.
    """
    counts = np.diff(starts)
    found = np.empty(int(starts[-1]), np.uint64)
    others = np.ones(len(found), bool)
    others[starts[:-1]] = False
    found[starts[:-1]] = hashes
    found[others] = hash_keys(
        f"{key}/{place}"
        for key, count in zip(keys, counts.tolist(), strict=True)
        for place in range(1, count)
    )
    return found


def member_text(value: object) -> str:
    """Return what a ``.cls`` or ``.txt`` member holds: a class or caption, of several captions the first."""
    return str(value[0] if isinstance(value, list) else value)


def as_lists(captions: pa.ChunkedArray, starts: Integers) -> pa.ChunkedArray:
    """Return captions that stand one after another as lists again, a batch of samples a chunk."""
    chunks = []
    for first in range(0, len(starts) - 1, BATCH):
        bounds = starts[first : first + BATCH + 1]
        values = captions.slice(int(bounds[0]), int(bounds[-1] - bounds[0])).combine_chunks()
        values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
        chunks.append(pa.ListArray.from_arrays(pa.array(bounds - bounds[0], pa.int32()), values))
    return pa.chunked_array(chunks, LISTS)


def with_captions(population: Population, column: pa.ChunkedArray) -> Population:
    """Return samples as a caption plan takes them: of several captions, each in the place of a sample.

    Args:
        population: The samples, with their keys.
        column: Their clean captions.
    """
    starts = starts_of(column) if pa.types.is_list(column.type) else None
    return with_texts(population, hash_column(flat(column)), starts)


def with_texts(population: Population, texts: Hashes, starts: Integers | None) -> Population:
    """Return samples as a caption plan takes them.

    Args:
        population: The samples, with their keys.
        texts: Hash of each caption, one after another, uint64 [captions].
        starts: Where those of each sample begin, and the end, int64 [N + 1]; None where each has one.
    """
    if starts is None:
        return replace(population, kind="caption", texts=texts)
    return replace(
        population,
        kind="caption",
        texts=texts,
        hashes=caption_hashes(population.keys, population.hashes, starts),
        owners=owners_of(starts),
        keys=(),
        names=(),
        source_rows=None,
        source_order_lost=True,
    )
