"""What each shard of a plan is packed from, in the order it is packed: all that a packing process reads.

A source is read in its own order, and every shard draws from all over it. So the rows are sorted once, when
the set is planned, and a shard's part of them is one range of one file::

    rows.bin     for each shard a table: Arrow, then the SHA-256 of it
    rows.npy     int64 [2, shards + 1]: where each shard's samples begin, and its table in rows.bin

The sorting holds a part of the rows in memory at a time: rows are dealt out to files by the shards that they
will be in, and each of these files is sorted by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from shards.arrow_columns import take_rows
from shards.captions import as_lists, flat, starts_of
from shards.catalogue import iter_catalogue
from shards.noise import Integers
from shards.shared_names import SHARING

ROWS = "rows.bin"
BOUNDS = "rows.npy"
# Place of a sample in its source.
SOURCE_ROW = "source_row"
_POSITION = "position"
# Rows sorted at a time, and the most files they are dealt out to, a file a level each.
_IN_MEMORY = 1 << 19
_FILES = 100
_DIGEST_BYTES = 32


class Readable(Protocol):
    """Where the files of a plan are."""

    def read_work(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return a range of a file, or None if it is not there."""
        ...


def write_rows(work: Path, levels: Mapping[str, Integers], order: Integers, bounds: Integers) -> None:
    """Write the rows of every shard of a plan.

    Args:
        work: The work folder, with the catalogue.
        levels: For each noisy level's column the class of each sample, int64 [N], or what caption each
            caption becomes, int64 [captions].
        order: The samples in write order, a permutation int64 [N].
        bounds: Shard boundaries in it, int64 [shards + 1].
    """
    order = order.astype(small(len(order)))
    position = np.empty_like(order)
    position[order] = np.arange(len(order), dtype=order.dtype)
    captions = _Captions.of(work, order, position) if levels else None
    most = max(_IN_MEMORY, -(-len(order) // max(1, _FILES // (1 + len(levels)))))
    # The first shard of each group that is sorted by itself.
    firsts = np.unique(np.searchsorted(bounds, np.arange(0, max(len(order), 1), most), side="right") - 1)
    starts = np.append(bounds[firsts], len(order))
    ends = [0]
    with tempfile.TemporaryDirectory(dir=work) as folder, (work / ROWS).open("wb") as file:
        columns = _deal_out(work, Path(folder), levels, position, starts, captions)
        for group, first in enumerate(firsts.tolist()):
            table = _sorted(Path(folder), group, columns)
            last = int(np.searchsorted(bounds, starts[group + 1]))
            for number in range(first, last):
                begin = int(bounds[number] - starts[group])
                rows = table.slice(begin, int(bounds[number + 1] - bounds[number]))
                ends.append(ends[-1] + file.write(_packed(rows)))
    np.save(work / BOUNDS, np.stack([bounds, np.array(ends, np.int64)]))


def small(count: int) -> type[np.signedinteger[Any]]:
    """Return the type of numbers below a count, many million of which a plan holds: of 32 bits if they do."""
    return np.int32 if count < 1 << 31 else np.int64


def _packed(rows: pa.Table) -> bytes:
    content = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        content, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(rows.combine_chunks())
    packed = content.getvalue()
    return b"".join([packed, hashlib.sha256(packed).digest()])


class _Captions(NamedTuple):
    """Where captions are, one after another: one a sample, or several.

    Attributes:
        begins: Of the captions of each sample of the catalogue, and the end, int64 [N + 1].
        written: The same in write order.
        position: Place of each caption in write order, int64 [captions].
    """

    begins: Integers
    written: Integers
    position: Integers

    @classmethod
    def of(cls, work: Path, order: Integers, position: Integers) -> _Captions | None:
        """Return those of a catalogue; None if it has classes."""
        parts = [
            starts_of(batch["caption"]) for batch in iter_catalogue(work) if "caption" in batch.schema.names
        ]
        if not parts:
            return None
        counts = np.concatenate([np.diff(part) for part in parts])
        total = int(counts.sum())
        if total == len(counts):
            # One each: where the samples are.
            one_each = np.arange(total + 1, dtype=position.dtype)
            return cls(one_each, one_each, position)
        kind = small(total + 1)
        begins, written = (np.append(0, np.cumsum(each)).astype(kind) for each in (counts, counts[order]))
        shift = np.repeat(written[position] - begins[:-1], counts)
        shift += np.arange(total, dtype=shift.dtype)
        return cls(begins, written, shift)


def _deal_out(
    work: Path,
    folder: Path,
    levels: Mapping[str, Integers],
    position: Integers,
    starts: Integers,
    captions: _Captions | None,
) -> list[str]:
    """Deal the rows of the catalogue out to a file a group of shards; return the columns that have own files.

    A caption that a sample gets from another one is met where that one lies: these go to files of their own.
    """
    takers = {}
    with contextlib.ExitStack() as stack:
        files = _Files(folder, stack)
        start = 0
        for batch in iter_catalogue(work):
            rows = np.arange(start, start + len(batch))
            table = pa.table(batch).append_column(SOURCE_ROW, pa.array(rows))
            table = table.drop_columns([name for name, _ in SHARING if name in table.column_names])
            for column, given in levels.items():
                if captions is None:
                    table = table.append_column(column, pa.array(given[rows], pa.int32()))
                    continue
                if column not in takers:
                    ends = np.cumsum(np.bincount(given, minlength=len(given)), dtype=given.dtype)
                    by_giver = np.argsort(given, kind="stable").astype(given.dtype)
                    takers[column] = by_giver, np.concatenate([ends[:1] * 0, ends])
                by_giver, begins = takers[column]
                first, last = captions.begins[[start, start + len(batch)]]
                taking = by_giver[begins[first] : begins[last]]
                texts = flat(table["caption"]).combine_chunks().take(pa.array(given[taking] - first))
                own = pa.table({column: texts})
                files.deal(column, own, captions.position[taking], captions.written[starts])
            files.deal("", table, position[rows], starts)
            start += len(batch)
        return list(takers)


class _Files:
    """The files that rows are dealt out to."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._writers: dict[tuple[str, int], pa.RecordBatchStreamWriter] = {}

    def deal(self, name: str, table: pa.Table, position: Integers, starts: Integers) -> None:
        """Give each group of shards its rows.

        Args:
            name: Of the file, beside the group's number.
            table: The rows.
            position: Their places in the write order, int64 [rows].
            starts: Where each group begins in it, and the end.
        """
        order = np.argsort(position, kind="stable")
        table = table.append_column(_POSITION, pa.array(position)).take(pa.array(order))
        cuts = np.searchsorted(position[order], starts)
        for group, (begin, end) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
            if end > begin:
                self._writer(name, group, table.schema).write_table(table.slice(begin, end - begin))

    def _writer(self, name: str, group: int, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        writer = self._writers.get((name, group))
        if writer is None:
            file = self._stack.enter_context(pa.OSFile(str(_dealt(self._folder, name, group)), "wb"))
            writer = self._writers[name, group] = self._stack.enter_context(pa.ipc.new_stream(file, schema))
        return writer


def _dealt(folder: Path, name: str, group: int) -> Path:
    return folder / f"{group}-{name}"


def _sorted(folder: Path, group: int, columns: list[str]) -> pa.Table:
    """Return a group's rows in write order."""
    table = _read_sorted(_dealt(folder, "", group))
    for column in columns:
        given = _read_sorted(_dealt(folder, column, group))[column]
        if pa.types.is_list(table.schema.field("caption").type):
            given = as_lists(given, starts_of(table["caption"]))
        table = table.append_column(column, given)
    return table


def _read_sorted(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    path.unlink()
    order = np.argsort(table[_POSITION].to_numpy())
    names = [name for name in table.column_names if name != _POSITION]
    return pa.table({name: take_rows(table[name], order) for name in names})


class PlanRows:
    """The rows of a plan, read a shard at a time from wherever its files are.

    Attributes:
        bounds: Shard boundaries in write order, int64 [shards + 1].
    """

    def __init__(self, files: Readable) -> None:
        self._files = files
        self.bounds, self._ends = np.load(io.BytesIO(files.read_work(BOUNDS) or b""))

    def read(self, number: int) -> pa.Table | None:
        """Return the rows of a shard; None where the plan is gone, as its set has been finished.

        Raises:
            ValueError: If they are damaged.
        """
        content = self._files.read_work(ROWS, int(self._ends[number]), int(self._ends[number + 1]))
        if content is None:
            return None
        packed, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            raise ValueError(f"the rows of shard {number} are damaged")
        return pa.ipc.open_stream(packed).read_all()
