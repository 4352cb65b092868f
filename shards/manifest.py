"""The manifest, the index and the statistics of a set, streamed shard by shard.

The manifest is the audit: every sample, where it came from, where it lies, its hash, and its
supervision at every level. The index is what reading needs of it, memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import atomic_writer, check_regular
from nml.parquet import iter_groups, read_parquet
from shards.captions import LISTS, flat
from shards.noise import Integers, Kind
from shards.packing import ORIGINAL_SHA256
from shards.set_info import SetInfo

RESTORE = "restore the file from where the set was written, or write the set again"

# Rows of one record batch of the index: sample i lies in batch i // INDEX_BATCH.
INDEX_BATCH = 65_536
_METADATA_FINGERPRINT = b"nml.fingerprint"
# Place of each sample in its source; manifests of earlier versions lack it.
SOURCE_ROW = "source_row"

_PLACE = [
    ("key", pa.string()),
    ("shard", pa.int32()),
    ("image_extension", pa.string()),
    ("image_offset", pa.int64()),
    ("image_size", pa.int64()),
    ("sha256", pa.binary(32)),
]
# What every sample has, in sets of every version.
MUST_HAVE = tuple(name for name, _ in _PLACE)
_AUDIT = [
    ("supervision_offset", pa.int64()),
    ("supervision_size", pa.int64()),
    ("json_offset", pa.int64()),
    ("json_size", pa.int64()),
    ("source_name", pa.string()),
    (SOURCE_ROW, pa.int64()),
]


def supervision_fields(kind: Kind, columns: Iterable[str]) -> list[pa.Field]:
    """Return the fields of supervision columns: int32 classes, caption texts or lists of these."""
    types = {"class": pa.int32(), "caption": pa.string(), "captions": LISTS}
    return [pa.field(column, types[kind]) for column in columns]


def manifest_schema(kind: Kind, columns: Iterable[str], *, resized: bool = False) -> pa.Schema:
    """Return the manifest's schema.

    Args:
        kind: ``class`` or ``caption``.
        columns: The supervision columns, clean first.
        resized: Whether images were made smaller: the hash of what each was is kept then.
    """
    original = [(ORIGINAL_SHA256, pa.binary(32))] if resized else []
    fields = [pa.field(*item) for item in (*_PLACE, *_AUDIT, *original)]
    return pa.schema(fields + supervision_fields(kind, columns))


def index_schema(kind: Kind, columns: Iterable[str], fingerprint: str) -> pa.Schema:
    """Return the index's schema, which names the set it belongs to."""
    fields = [pa.field(*item) for item in _PLACE] + supervision_fields(kind, columns)
    return pa.schema(fields, metadata={_METADATA_FINGERPRINT: fingerprint.encode()})


def schema_fingerprint(schema: pa.Schema) -> str:
    """Return the fingerprint of the set that an index belongs to; empty if it names none."""
    return (schema.metadata or {}).get(_METADATA_FINGERPRINT, b"").decode(errors="replace")


def write_manifest(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write the manifest, a row group a table, whole or not at all."""
    with atomic_writer(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema))


def write_index(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write the index in batches of exactly INDEX_BATCH rows (the last may be shorter)."""
    with atomic_writer(path) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in rebatch((table.select(schema.names).cast(schema) for table in tables), INDEX_BATCH):
            writer.write_batch(batch)


def column_digest(column: pa.Array) -> str:
    """Return a hash of a column of one batch as it lies in the index, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for buffer in column.buffers():
        if buffer is not None:
            digest.update(buffer)
    return digest.hexdigest()[:16]


def index_digests(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the hashes of each column of an index, one a batch."""
    check_regular(path)
    # Not mapped: a mapped file that is read from start to end counts as memory of its whole size.
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        digests: dict[str, list[str]] = {name: [] for name in reader.schema.names}
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for name, found in digests.items():
                found.append(column_digest(batch.column(name)))
        return {name: tuple(found) for name, found in digests.items()}


def rebatch(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of ``tables`` in batches of exactly ``rows`` (the last may be shorter)."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held < rows:
            continue
        joined = pa.concat_tables(waiting)
        whole = held - held % rows
        for start in range(0, whole, rows):
            yield _one_batch(joined.slice(start, rows))
        waiting, held = [joined.slice(whole)], held - whole
    if held:
        yield _one_batch(pa.concat_tables(waiting))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        # An Arrow string column of one batch ends at 2 GiB.
        raise UserError(
            f"{table.num_rows:,} neighbouring samples have more than 2 GiB of text",
            mend="shorten the captions: this is more than 32 kB each",
        )
    return batches[0]


def read_source_rows(path: Path) -> Integers | None:
    """Return the place of each sample in its source, int64 [N]; None if the manifest does not tell.

    Raises:
        UserError: If the manifest cannot be read, or does not name each place once.
    """
    try:
        if SOURCE_ROW not in pq.read_schema(path).names:
            return None
        rows = _integers(read_parquet(path, [SOURCE_ROW])[SOURCE_ROW])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged or missing: {error}", mend=RESTORE) from error
    if not np.array_equal(np.sort(rows), np.arange(len(rows))):
        raise UserError(f"{path}: damaged: {SOURCE_ROW} does not name each place once", mend=RESTORE)
    return rows


class SourceNames:
    """What the source called each sample, read from a manifest when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[str]:
        for table in iter_manifest(self._path):
            yield from table["source_name"].to_pylist()


def iter_manifest(path: Path) -> Iterator[pa.Table]:
    """Yield a manifest's row groups as tables; errors as of :func:`nml.parquet.iter_groups`."""
    return iter_groups(path)


class Statistics:
    """Class counts and the realised transition counts of every level, gathered batch by batch."""

    def __init__(self, kind: Kind, num_classes: int, levels: dict[str, str]) -> None:
        """Count for ``levels``, a mapping of level name to column."""
        self._kind = kind
        self._classes = num_classes
        self._levels = levels
        self._counts = np.zeros(num_classes, np.int64)
        self._transitions = {
            name: np.zeros(num_classes**2, np.int64) for name in levels if num_classes <= 4096
        }
        self._changed = dict.fromkeys(levels, 0)
        self._rows = 0

    @classmethod
    def of(cls, info: SetInfo) -> Statistics:
        """Count for the noisy levels of a set."""
        levels = {name: level.column for name, level in info.levels.items()}
        return cls(info.kind, len(info.classes or ()), levels)

    def add(self, table: pa.Table) -> None:
        """Count a table of the manifest."""
        self._rows += table.num_rows
        if self._kind != "class":
            clean = flat(table["caption"]).combine_chunks()
            for name, column in self._levels.items():
                self._changed[name] += int(pc.sum(pc.not_equal(clean, flat(table[column]))).as_py() or 0)
            return
        clean_labels = _integers(table["label"])
        self._counts += np.bincount(clean_labels, minlength=self._classes)
        for name, column in self._levels.items():
            noisy = _integers(table[column])
            self._changed[name] += int(np.count_nonzero(noisy != clean_labels))
            if name in self._transitions:
                pairs = clean_labels * self._classes + noisy
                np.add.at(self._transitions[name], pairs, 1)

    def as_json(self, classes: Iterable[str] | None) -> dict[str, Any]:
        """Return what stats.json stores; transitions are sparse triples [clean, given, count]."""
        levels: dict[str, Any] = {}
        for name in self._levels:
            levels[name] = {"changed": self._changed[name]}
            if name in self._transitions:
                matrix = self._transitions[name].reshape(self._classes, self._classes)
                cells = np.argwhere(matrix)
                levels[name]["transitions"] = [[int(a), int(b), int(matrix[a, b])] for a, b in cells]
        return {
            "num_samples": self._rows,
            "classes": list(classes) if classes is not None else None,
            "class_counts": self._counts.tolist() if self._kind == "class" else None,
            "levels": levels,
        }

    def transition_matrix(self, name: str) -> npt.NDArray[np.int64]:
        """Return a level's realised transition counts, int64 [K, K]: row is clean, column is given."""
        return self._transitions[name].reshape(self._classes, self._classes)


def _integers(column: pa.ChunkedArray) -> Integers:
    return column.to_numpy().astype(np.int64)
