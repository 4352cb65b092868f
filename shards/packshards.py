"""Pack the shards of a plan, in one process or several; the plan alone decides the bytes."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import write_bytes
from shards.arrow_columns import take_rows
from shards.catalogue import SPOOL, map_catalogue
from shards.destination import Destination
from shards.ladder import Level, clean_column
from shards.layout import shard_name
from shards.manifest import SOURCE_ROW, manifest_schema
from shards.noise import Integers, Kind
from shards.packing import PackedShard, Samples, pack_shard
from shards.resize import Resize
from shards.set_info import Shard

_PR_SET_PDEATHSIG = 1
# A record ends in the SHA-256 of what stands before it.
_DIGEST_BYTES = 32
# Columns of the catalogue that a shard is packed from, besides the supervision.
_PACKED = ("key", "name", "path", "offset", "size")


class Columns(NamedTuple):
    """Supervision of one shard's samples by column name, clean first: classes or captions."""

    values: dict[str, list[Any]]
    primary: str


def record_path(work: Path, number: int) -> Path:
    """Return where the record of a finished shard lies."""
    return work / f"{shard_name(number).removesuffix('.tar')}.arrow"


def forget_lost(work: Path, shards: int, sizes: dict[str, int]) -> None:
    """Remove the record of every shard that is not there any more, so that it is packed again.

    As is one whose record is damaged, or was written by an earlier version, without all that one has now.
    """
    for number in range(shards):
        path = record_path(work, number)
        if not path.exists():
            continue
        if not _is_written(path):
            path.unlink()
            continue
        shard, table = read_record(work, number)
        if sizes.get(shard.name) != shard.bytes or SOURCE_ROW not in table.column_names:
            path.unlink()


def _is_written(path: Path) -> bool:
    """Whether a record is as it was written: the manifest is made of it, and hashed only then."""
    content = path.read_bytes()
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def pack_all(packer: ShardPacker, work: Path, shards: int, workers: int) -> int:
    """Pack every shard that is not finished yet; return how many samples that were.

    Raises:
        UserError: If an image cannot be read or a worker was killed. Finished shards are kept, and
            the same command continues.
        OSError: If a disk is full.
    """
    bounds = np.load(work / "bounds.npy")
    todo = [number for number in range(shards) if not record_path(work, number).exists()]
    fresh = 0
    with tqdm(
        desc="writing shards",
        total=int(bounds[-1]),
        initial=int(bounds[-1] - sum(bounds[number + 1] - bounds[number] for number in todo)),
        unit=" samples",
        disable=not is_interactive(),
    ) as progress:
        for samples in _each(packer, todo, min(workers, len(todo))):
            fresh += samples
            progress.update(samples)
    return fresh


def _each(packer: ShardPacker, todo: list[int], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from map(packer, todo)
        return
    # spawn: a fork would inherit threads of pyarrow and whatever else the caller runs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        try:
            for future in as_completed([pool.submit(packer, number) for number in todo]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a writing process was killed (out of memory?)",
                mend="run the same command again, with fewer --workers; finished shards are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this worker when the writer dies, so that none outlives a kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class ShardPacker:
    """Packs a shard by number; picklable, so that it can run in any process."""

    def __init__(
        self,
        destination: Destination,
        kind: Kind,
        levels: list[Level],
        primary: str,
        resize: Resize | None = None,
    ) -> None:
        self._destination = destination
        self._work = destination.work
        self._kind: Kind = kind
        self._levels = levels
        self._primary = primary
        self._resize = resize

    def __call__(self, number: int) -> int:
        """Write and publish shard ``number``, then its record; return its samples."""
        bounds = np.load(self._work / "bounds.npy", mmap_mode="r")
        order = np.load(self._work / "order.npy", mmap_mode="r")
        rows = np.asarray(order[bounds[number] : bounds[number + 1]])
        catalogue = map_catalogue(self._work)
        table = pa.table({name: take_rows(catalogue[name], rows) for name in _PACKED})
        columns = self._supervision(catalogue, rows)
        name = shard_name(number)
        packed = pack_shard(
            self._destination.staging / name,
            self._samples(table, columns),
            "cls" if self._kind == "class" else "txt",
            resize=self._resize,
        )
        self._destination.publish(name)
        self._write_record(number, table.append_column(SOURCE_ROW, pa.array(rows)), columns, packed)
        return len(rows)

    def _supervision(self, catalogue: pa.Table, rows: Integers) -> Columns:
        """Return every supervision column of ``rows``."""
        clean = clean_column(self._kind)
        values = {clean: take_rows(catalogue[clean], rows).to_pylist()}
        for level in self._levels:
            given = np.load(self._work / f"{level.column}.npy", mmap_mode="r")[rows]
            if self._kind == "class":
                values[level.column] = given.tolist()
            else:
                values[level.column] = take_rows(catalogue[clean], given).to_pylist()
        primary = next((level.column for level in self._levels if level.name == self._primary), clean)
        return Columns(values, primary)

    def _samples(self, table: pa.Table, columns: Columns) -> Samples:
        spool = str(self._work / SPOOL)
        keys = table["key"].to_pylist()
        return Samples(
            keys,
            [path or spool for path in table["path"].to_pylist()],
            table["offset"].to_pylist(),
            table["size"].to_pylist(),
            [str(value).encode() for value in columns.values[columns.primary]],
            json_records(keys, columns.values),
        )

    def _write_record(self, number: int, table: pa.Table, columns: Columns, packed: PackedShard) -> None:
        """Write the shard's part of the manifest; with it the shard counts as finished."""
        arrays: dict[str, Any] = {
            "key": table["key"],
            "shard": np.full(table.num_rows, number, np.int32),
            "source_name": table["name"],
            SOURCE_ROW: table[SOURCE_ROW],
            **packed.columns,
            **columns.values,
        }
        schema = manifest_schema(self._kind, columns.values, resized=self._resize is not None)
        shard = Shard(shard_name(number), table.num_rows, packed.size, packed.digest)
        schema = schema.with_metadata({"bytes": str(shard.bytes), "tree_sha256": shard.tree_sha256})
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, schema) as writer:
            writer.write_table(pa.table(arrays, schema=schema))
        record = content.getvalue()
        write_bytes(record_path(self._work, number), b"".join([record, hashlib.sha256(record).digest()]))


def json_records(keys: Sequence[str], columns: dict[str, list[Any]]) -> list[bytes]:
    """Return the ``.json`` member of each sample: its key and its supervision, compact UTF-8.

    What json.dumps gives, by one template for all: an encoder a sample would take as long as a tar header.
    """
    template = "{" + ",".join(f'"{name}":%s' for name in ("key", *columns)) + "}"
    # Keys are of [A-Za-z0-9_-], and classes integers: only captions need escaping.
    encoded = [
        map(encode_basestring, values) if values and isinstance(values[0], str) else values
        for values in (keys, *columns.values())
    ]
    return [(template % row).encode() for row in zip(*encoded, strict=True)]


def read_record(work: Path, number: int) -> tuple[Shard, pa.Table]:
    """Return a finished shard and its rows of the manifest."""
    with pa.memory_map(str(record_path(work, number))) as file:
        content = file.read_buffer()
        table = pa.ipc.open_file(content.slice(0, content.size - _DIGEST_BYTES)).read_all()
    metadata = table.schema.metadata
    shard = Shard(
        shard_name(number), table.num_rows, int(metadata[b"bytes"]), metadata[b"tree_sha256"].decode()
    )
    return shard, table.replace_schema_metadata(None)
