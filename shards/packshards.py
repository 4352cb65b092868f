"""Pack the shards of a plan, in one process or several; the plan alone decides the bytes."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import write_bytes
from nml.locking import NoLocksError, byte_lock
from nml.untrusted import parse_json
from shards.captions import member_text
from shards.destination import Destination
from shards.gathering import gather
from shards.ladder import clean_column
from shards.layout import shard_name
from shards.locking import PACKING_LOCK
from shards.manifest import SOURCE_ROW, manifest_schema
from shards.noise import Kind
from shards.packing import PackedShard, Samples, pack_shard
from shards.plan_rows import ROWS, PlanRows
from shards.planning import Plan, damaged_plan
from shards.resize import Resize
from shards.set_info import Shard

_PR_SET_PDEATHSIG = 1
# A record ends in the SHA-256 of what stands before it.
_DIGEST_BYTES = 32
_FORMS = "forms"


def record_name(number: int) -> str:
    """Return the name of the record of a finished shard, among the unfinished work."""
    return f"{shard_name(number).removesuffix('.tar')}.arrow"


@contextlib.contextmanager
def holding(work: Path, number: int, *, wait: bool) -> Iterator[bool]:
    """Keep others from packing a shard, on all machines that share the work folder.

    Without locks two may pack it at once: they write the same bytes, each whole, and lose but time.
    """
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(byte_lock(work / PACKING_LOCK, number, wait=wait))
        except (NoLocksError, FileNotFoundError):
            # No folder: the set has been finished meanwhile.
            mine = True
        yield mine


def is_finished(destination: Destination, number: int, sizes: dict[str, int]) -> bool:
    """Whether a shard is there, with its record as it was written.

    Not so are one that was lost, one with a damaged record, of which the manifest is made, and one by an
    earlier version, without all that a record has now.

    Args:
        destination: Where the set is written.
        number: The shard.
        sizes: Bytes of every file that is there.
    """
    content = destination.read_work(record_name(number))
    if content is None or hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        return False
    shard, table = parse_record(number, content)
    return sizes.get(shard.name) == shard.bytes and SOURCE_ROW in table.column_names


def unfinished(destination: Destination, numbers: Sequence[int]) -> list[int]:
    """Return which shards are still to be packed; their records, where they have one, are removed."""
    records, sizes = destination.work_names(), destination.sizes()
    todo = []
    for number in numbers:
        name = record_name(number)
        if name in records and not is_finished(destination, number, sizes):
            destination.remove_work(name)
            records.remove(name)
        if name not in records:
            todo.append(number)
    return todo


def pack_all(packer: ShardPacker, todo: Sequence[int], workers: int) -> int:
    """Pack shards, those last that other processes are packing; return how many samples this one packed.

    Args:
        packer: Packs one.
        todo: Numbers of shards.
        workers: How many processes do so.

    Raises:
        UserError: If an image cannot be read or a worker was killed. Finished shards are kept, and
            the same command continues.
        OSError: If a disk is full.
    """
    fresh = 0
    with tqdm(
        desc="writing shards",
        total=packer.samples(todo),
        unit=" samples",
        disable=not is_interactive(),
    ) as progress:
        for wait in (False, True):
            left = []
            for number, samples in _each(packer, todo, min(workers, len(todo)), wait=wait):
                if samples is None:
                    left.append(number)
                    continue
                fresh += samples
                progress.update(samples)
            todo = sorted(left)
    return fresh


def _each(
    packer: ShardPacker, todo: Sequence[int], workers: int, *, wait: bool
) -> Iterator[tuple[int, int | None]]:
    if workers <= 1:
        yield from ((number, packer(number, wait=wait)) for number in todo)
        return
    # spawn: a fork would inherit threads of pyarrow and whatever else the caller runs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), packer)) as pool:
        try:
            futures = {pool.submit(_pack, number, wait): number for number in todo}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a writing process was killed (out of memory?)",
                mend="run the same command again, with fewer --workers; finished shards are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# Of a worker: it reads once what each shard needs of the plan.
_packers: list[ShardPacker] = []


def _begin(parent: int, packer: ShardPacker) -> None:
    """Begin a worker that ends with the writer: the kernel sees to it, so that none outlives a kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _packers.append(packer)


def _pack(number: int, wait: bool) -> int | None:
    return _packers[0](number, wait=wait)


class ShardPacker:
    """Packs a shard by number; picklable, so that it can run in any process."""

    def __init__(self, destination: Destination, plan: Plan) -> None:
        self._destination = destination
        self._kind: Kind = plan.kind
        self._columns = (clean_column(plan.kind), *(level.column for level in plan.levels.values()))
        level = plan.levels.get(plan.primary)
        self._primary = level.column if level else self._columns[0]
        self._resize = Resize.from_json(plan.resized) if plan.resized else None
        self._rows = PlanRows(destination)

    def samples(self, numbers: Sequence[int]) -> int:
        """Return how many samples these shards hold."""
        return sum(int(self._rows.bounds[number + 1] - self._rows.bounds[number]) for number in numbers)

    def __call__(self, number: int, *, wait: bool = True) -> int | None:
        """Write and publish shard ``number``, then its record, unless another process has done so meanwhile.

        Args:
            number: The shard.
            wait: Whether to wait for a process that is packing it.

        Returns:
            How many samples were packed; None if another process is packing it.
        """
        with holding(self._destination.work, number, wait=wait) as mine:
            if not mine:
                return None
            if self._destination.read_work(record_name(number)) is not None:
                return 0
            try:
                rows = self._rows.read(number)
            except ValueError:
                raise damaged_plan(self._destination, ROWS) from None
            # Gone where the set has been finished.
            return 0 if rows is None else self._pack(number, rows)

    def _pack(self, number: int, rows: pa.Table) -> int:
        name = shard_name(number)
        values = {column: rows[column].to_pylist() for column in self._columns}
        places = [rows[column].to_pylist() for column in ("path", "leaf", "offset", "size")]
        paths = [path or self._destination.spool for path in places[0]]
        keys = rows["key"].to_pylist()
        staging = self._destination.staging
        gathered = gather(staging, paths, *places[1:])
        samples = Samples(
            keys,
            gathered.paths,
            gathered.offsets,
            places[-1],
            [member_text(value).encode() for value in values[self._primary]],
            json_records(keys, values),
        )
        extension = "cls" if self._kind == "class" else "txt"
        with gathered.file or contextlib.nullcontext():
            packed = pack_shard(staging / name, samples, extension, gathered.file, resize=self._resize)
        self._destination.publish(name)
        self._write_record(number, rows, values, packed)
        return len(rows)

    def _write_record(
        self, number: int, table: pa.Table, values: dict[str, list[Any]], packed: PackedShard
    ) -> None:
        """Write the shard's part of the manifest; with it the shard counts as finished."""
        arrays: dict[str, Any] = {
            "key": table["key"],
            "shard": np.full(table.num_rows, number, np.int32),
            "source_name": table["name"],
            SOURCE_ROW: table[SOURCE_ROW],
            **packed.columns,
            **values,
        }
        schema = manifest_schema(self._kind, values, resized=self._resize is not None)
        shard = Shard(shard_name(number), table.num_rows, packed.size, packed.digest)
        schema = schema.with_metadata(
            {
                "bytes": str(shard.bytes),
                "tree_sha256": shard.tree_sha256,
                _FORMS: json.dumps(packed.forms, sort_keys=True),
            }
        )
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, schema) as writer:
            writer.write_table(pa.table(arrays, schema=schema))
        record = content.getvalue()
        name = record_name(number)
        write_bytes(self._destination.work / name, b"".join([record, hashlib.sha256(record).digest()]))
        self._destination.publish_work(name)


def json_records(keys: Sequence[str], columns: dict[str, list[Any]]) -> list[bytes]:
    """Return the ``.json`` member of each sample: its key and its supervision, compact UTF-8.

    What json.dumps gives, by one template for all: an encoder a sample would take as long as a tar header.
    """
    template = "{" + ",".join(f'"{name}":%s' for name in ("key", *columns)) + "}"
    # Keys are of [A-Za-z0-9_-], and classes integers: only captions need escaping.
    encoded = [map(_encoded, values) for values in (keys, *columns.values())]
    return [(template % row).encode() for row in zip(*encoded, strict=True)]


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return f"[{','.join(map(encode_basestring, value))}]"
    return encode_basestring(value) if isinstance(value, str) else value


def parse_record(number: int, content: bytes) -> tuple[Shard, pa.Table]:
    """Return a finished shard and its rows of the manifest."""
    table = pa.ipc.open_file(content[:-_DIGEST_BYTES]).read_all()
    metadata = table.schema.metadata
    shard = Shard(
        shard_name(number), table.num_rows, int(metadata[b"bytes"]), metadata[b"tree_sha256"].decode()
    )
    return shard, table.replace_schema_metadata(None)


def recorded_forms(content: bytes) -> dict[str, int]:
    """Return how many images of a finished shard came in unusual forms; see :class:`PackedShard`."""
    metadata = pa.ipc.open_file(content[:-_DIGEST_BYTES]).schema.metadata
    forms: dict[str, int] = parse_json(metadata.get(_FORMS.encode(), b"{}"))
    return forms
