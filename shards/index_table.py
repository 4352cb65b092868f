"""The index of a set, memory-mapped: where sample i lies and what its supervision is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nml.errors import UserError
from nml.files import check_regular
from shards.arrow_blocks import is_packed
from shards.manifest import INDEX_BATCH, RESTORE, column_digest, index_schema, schema_fingerprint
from shards.set_info import SetInfo


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
    so that a damaged index is an error and never another label. Who wrote it may have written the hashes
    too: so each is also held to what Arrow promises of its type, and to the samples, shards and classes of
    set.json, before its first value is taken.

    Raises:
        UserError: If the file is damaged, or belongs to another set.
    """

    def __init__(self, path: Path, info: SetInfo) -> None:
        self._path = path
        self._digests = info.index_digests
        self._info = info
        largest = max((shard.bytes for shard in info.shards), default=0)
        self._ranges = {
            "shard": (0, len(info.shards) - 1),
            "image_offset": (0, largest),
            "image_size": (0, largest),
        }
        if info.kind == "class":
            labels = (0, len(info.classes or ()) - 1)
            self._ranges |= {level.column: labels for level in info.all_levels().values()}
        try:
            check_regular(path)
            mapped = pa.memory_map(str(path))
            self._bytes = memoryview(mapped.read_buffer())
            self._reader = pa.ipc.open_file(mapped)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: damaged or missing: {error}", mend=RESTORE) from error
        schema = self._reader.schema
        try:
            self._check(schema, info)
            self._columns = {name: number for number, name in enumerate(schema.names)}
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: damaged: {error}", mend=RESTORE) from error
        self._batches: dict[int, pa.RecordBatch] = {}
        self._arrays: dict[tuple[int, str], Any] = {}

    def _check(self, schema: pa.Schema, info: SetInfo) -> None:
        found = schema_fingerprint(schema)
        if found != info.fingerprint:
            raise UserError(
                f"{self._path}: belongs to another set ({found[:12] or 'none named'}, set.json says "
                f"{info.fingerprint[:12]})",
                mend=RESTORE,
            )
        types = {field.name: field.type for field in index_schema(info.kind, _level_columns(info), "")}
        for field in schema:
            if field.type != types.get(field.name, field.type):
                raise UserError(
                    f"{self._path}: damaged: {field.name} is {field.type}",
                    possible=str(types[field.name]),
                    mend=RESTORE,
                )
        missing = [name for name in types if name not in schema.names]
        batches = self._reader.num_record_batches
        rows = (batches - 1) * INDEX_BATCH + self._batch_rows(batches - 1) if batches else 0
        if missing or rows != info.num_samples:
            what = f"lacks {', '.join(missing)}" if missing else f"has {rows} rows"
            raise UserError(
                f"{self._path}: {what}, and set.json names {info.num_samples} samples", mend=RESTORE
            )

    @property
    def names(self) -> list[str]:
        """The columns that set.json tells of; a level that was not finished may have left another one."""
        return index_schema(self._info.kind, _level_columns(self._info), "").names

    def _batch_rows(self, number: int) -> int:
        rows: int = self._get_batch(number).num_rows
        return rows

    def _get_batch(self, number: int) -> pa.RecordBatch:
        """Return a batch whose bytes are not checked yet."""
        try:
            if is_packed(self._bytes, number):
                raise UserError(f"{self._path}: a batch of it is compressed", possible="as it was written")
            return self._reader.get_batch(number)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self._path}: damaged: {error}", mend=RESTORE) from error

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
        if self._digests and not self._is_written(batch, name, column):
            raise self._damaged(batch, name, "is not what was written")
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise self._damaged(batch, name, str(error)) from error
        if len(column) != min(INDEX_BATCH, self._info.num_samples - batch * INDEX_BATCH) or column.null_count:
            raise self._damaged(batch, name, "lacks values")
        if pa.types.is_list(column.type) and (
            column.flatten().null_count or pc.min(pc.list_value_length(column)).as_py() == 0
        ):
            raise self._damaged(batch, name, "lacks captions")
        low, high = self._ranges.get(name, (None, None))
        if low is not None and len(column):
            found = pc.min_max(column).as_py()
            if found["min"] < low or found["max"] > high:
                raise self._damaged(
                    batch, name, f"is from {found['min']} to {found['max']}, not {low} to {high}"
                )
        return column

    def _is_written(self, batch: int, name: str, column: pa.Array) -> bool:
        written = self._digests.get(name, ())
        return batch < len(written) and column_digest(column) == written[batch]

    def _damaged(self, batch: int, name: str, what: str) -> UserError:
        return UserError(
            f"{self._path}: damaged: {name} of rows from {batch * INDEX_BATCH:,} {what}", mend=RESTORE
        )

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

    def supervision(self, sample: int, column: str, turn: int = 0) -> int | str:
        """Return a sample's class or caption in one supervision column.

        Args:
            sample: Its number.
            column: The column.
            turn: Which of several captions: the turn-th, counted round and round.
        """
        batch, row = divmod(sample, INDEX_BATCH)
        value = self._column(batch, column)[row]
        if isinstance(value, pa.ListScalar):
            value = value.values[turn % len(value.values)]
        return int(value) if isinstance(value, np.integer) else str(value.as_py())

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, memory-mapped."""
        chunks = [self._checked(batch, name) for batch in range(self._reader.num_record_batches)]
        return pa.chunked_array(chunks, type=self._reader.schema.field(name).type)


def _level_columns(info: SetInfo) -> list[str]:
    return [level.column for level in info.all_levels().values()]
