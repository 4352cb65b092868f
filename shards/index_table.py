"""The index of a set, memory-mapped: where sample i lies and what its supervision is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nml.errors import UserError
from shards.manifest import INDEX_BATCH, column_digest, schema_fingerprint
from shards.setfile import SetInfo


class Place(NamedTuple):
    """Where a sample's image lies, and what it must hash to."""

    key: str
    shard: int
    extension: str
    offset: int
    size: int
    sha256: bytes


class IndexTable:
    """Constant-time lookups by sample number; nothing is read before it is asked for.

    Each column of each batch of rows is checked against its hash in set.json when it is first used,
    so that a damaged index is an error and never another label.

    Raises:
        UserError: If the file is damaged, or belongs to another set.
    """

    def __init__(self, path: Path, info: SetInfo) -> None:
        self._path = path
        self._digests = info.index_digests
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: damaged or missing: {error}", mend=_MEND) from error
        schema = self._reader.schema
        self._check(schema, info)
        self._columns = {name: number for number, name in enumerate(schema.names)}
        self._batches: dict[int, pa.RecordBatch] = {}
        self._arrays: dict[tuple[int, str], Any] = {}

    def _check(self, schema: pa.Schema, info: SetInfo) -> None:
        found = schema_fingerprint(schema)
        if found != info.fingerprint:
            raise UserError(
                f"{self._path}: belongs to another set ({found[:12] or 'none named'}, set.json says "
                f"{info.fingerprint[:12]})",
                mend=_MEND,
            )
        missing = [level.name for level in info.all_levels().values() if level.column not in schema.names]
        batches = self._reader.num_record_batches
        rows = (batches - 1) * INDEX_BATCH + self._batch_rows(batches - 1) if batches else 0
        if missing or rows != info.num_samples:
            what = f"lacks level {', '.join(missing)}" if missing else f"has {rows} rows"
            raise UserError(
                f"{self._path}: {what}, and set.json names {info.num_samples} samples", mend=_MEND
            )

    def _batch_rows(self, number: int) -> int:
        rows: int = self._get_batch(number).num_rows
        return rows

    def _get_batch(self, number: int) -> pa.RecordBatch:
        """Return a batch whose bytes are not checked yet."""
        try:
            return self._reader.get_batch(number)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._path}: damaged: {error}", mend=_MEND) from error

    def _column(self, batch: int, name: str) -> Any:
        """Return a column of a batch: a NumPy view of the file for numbers, else the Arrow array."""
        column = self._arrays.get((batch, name))
        if column is None:
            column = self._checked(batch, name)
            if pa.types.is_integer(column.type):
                # Arrow's own to_numpy imports pandas first, which takes every worker half a second.
                column = np.from_dlpack(column)
            self._arrays[batch, name] = column
        return column

    def _checked(self, batch: int, name: str) -> pa.Array:
        """Return a column of a batch whose hash is right."""
        if batch not in self._batches:
            self._batches[batch] = self._get_batch(batch)
        column = self._batches[batch].column(self._columns[name])
        if self._digests and column_digest(column) != self._digests[name][batch]:
            raise UserError(
                f"{self._path}: damaged: {name} of rows from {batch * INDEX_BATCH:,} is not what was written",
                mend=_MEND,
            )
        return column

    def place(self, sample: int) -> Place:
        """Return where sample number ``sample`` lies."""
        batch, row = divmod(sample, INDEX_BATCH)
        return Place(
            self._column(batch, "key")[row].as_py(),
            int(self._column(batch, "shard")[row]),
            self._column(batch, "image_extension")[row].as_py(),
            int(self._column(batch, "image_offset")[row]),
            int(self._column(batch, "image_size")[row]),
            self._column(batch, "sha256")[row].as_py(),
        )

    def supervision(self, sample: int, column: str) -> int | str:
        """Return a sample's class or caption in one supervision column."""
        batch, row = divmod(sample, INDEX_BATCH)
        value = self._column(batch, column)[row]
        return int(value) if isinstance(value, np.integer) else str(value.as_py())

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, memory-mapped."""
        chunks = [self._checked(batch, name) for batch in range(self._reader.num_record_batches)]
        return pa.chunked_array(chunks, type=self._reader.schema.field(name).type)


_MEND = "restore the file from where the set was written, or write the set again"
