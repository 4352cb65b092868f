"""How many bytes samples will take in a tar, before one is written: what shards are cut by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards.captions import flat, starts_of
from shards.catalogue import Catalogue
from shards.ladder import PlannedLevel
from shards.layout import member_bytes
from shards.noise import Integers, Kind

_ESCAPED = r'["\\\x00-\x1f]'


def sample_sizes(catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> Integers:
    """Return at least the bytes that each sample takes in a tar, int64 [N]."""
    parts = [_lengths(batch, catalogue.kind) for batch in catalogue.batches()]
    images, keys, counts, text, escaped = (np.concatenate(part) for part in zip(*parts, strict=True))
    del parts
    # The record's keys and punctuation, and a class a level.
    record = keys + np.int64(64 * (len(planned) + 2))
    if catalogue.kind == "class":
        return member_bytes(images, np.full(len(images), 8), record)
    if catalogue.kind == "captions":
        # The brackets.
        record += 2 * (len(planned) + 1)
    first = np.cumsum(counts, dtype=np.int64) - counts
    longest = text[first]
    record += np.add.reduceat(escaped, first, dtype=np.int64)
    for _, (rows, sources) in planned:
        given = text.copy()
        given[rows] = text[sources]
        np.maximum(longest, given[first], out=longest)
        given[:] = escaped
        given[rows] = escaped[sources]
        record += np.add.reduceat(given, first, dtype=np.int64)
        del given
    del text, escaped, counts, first
    return member_bytes(images, longest, record)


class _Lengths(NamedTuple):
    """Lengths of some samples; those of texts are of 32 bits, as a plan holds many million.

    Attributes:
        images: Bytes of each image, int64 [n].
        keys: Bytes of each key, int32 [n].
        counts: How many captions each has, int32 [n]; empty for classes, and so are the others.
        text: Bytes of each caption, int32 [captions].
        escaped: The same as JSON writes it.
    """

    images: Integers
    keys: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    text: npt.NDArray[np.int32]
    escaped: npt.NDArray[np.int32]


def _lengths(batch: pa.RecordBatch, kind: Kind) -> _Lengths:
    # A view would keep all of the batch in memory.
    images, keys = batch["size"].to_numpy().copy(), pc.binary_length(batch["key"]).to_numpy()
    if kind == "class":
        nothing = np.empty(0, np.int32)
        return _Lengths(images, keys, nothing, nothing, nothing)
    captions = pa.chunked_array([batch["caption"]])
    text = pc.binary_length(flat(captions)).to_numpy()
    # JSON writes a quotation mark in two bytes and a control character in up to six.
    escaped = text + 5 * pc.count_substring_regex(flat(captions), _ESCAPED).to_numpy()
    if kind == "captions":
        # Quotation marks and a comma.
        escaped = escaped + 3
    counts = np.diff(starts_of(captions)).astype(np.int32)
    return _Lengths(images, keys, counts, text, escaped.astype(np.int32))
