"""Turn finished shards into a set: manifest, index, statistics, and set.json last of all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nml.errors import UserError
from nml.files import json_bytes, sha256_file, write_json
from nml.levels import CLEAN_LEVEL
from nml.set_file import MANIFEST_FILE, SET_FILE
from nml.untrusted import MOST_BYTES
from shards.arrow_columns import take_rows
from shards.captions import flat, owners_of, starts_of
from shards.ladder import Level, clean_column
from shards.manifest import (
    INDEX_BATCH,
    Statistics,
    index_digests,
    index_schema,
    manifest_schema,
    write_index,
    write_manifest,
)
from shards.noise import Kind
from shards.packing import ORIGINAL_SHA256
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo, Shard, fingerprint

ShardRecords = Callable[[], Iterable[tuple[Shard, pa.Table]]]


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """What set.json says besides what the shards themselves tell; see :class:`shards.set_info.SetInfo`."""

    kind: Kind
    classes: tuple[str, ...] | None
    source: str
    seed: int = 0
    levels: dict[str, Level] = field(default_factory=dict)
    primary: str = CLEAN_LEVEL
    request: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, str] | None = None
    held_out: bool = False
    resized: dict[str, Any] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)


def finish(out: Path, records: ShardRecords, description: SetDescription) -> SetInfo:
    """Write what describes the finished shards in ``out``, set.json last, and return it.

    Args:
        out: Folder of the set.
        records: Gives each shard with its rows of the manifest, in order; called twice.
        description: The rest.
    """
    kind, classes, levels = description.kind, description.classes, description.levels
    columns = [clean_column(kind), *(level.column for level in levels.values())]
    statistics = Statistics(kind, len(classes or ()), {name: level.column for name, level in levels.items()})
    shards: list[Shard] = []
    clean = hashlib.sha256()
    resized = dict(description.resized)

    def tables() -> Iterator[pa.Table]:
        for shard, table in records():
            shards.append(shard)
            statistics.add(table)
            if resized:
                shrunk = pc.sum(pc.not_equal(table[ORIGINAL_SHA256], table["sha256"])).as_py()
                resized["images"] = resized.get("images", 0) + shrunk
            clean.update(supervision_digest(table, columns[0]))
            yield table

    schema = manifest_schema(kind, columns, resized=bool(resized))
    write_manifest(out / MANIFEST_FILE, schema, tables())
    identity = fingerprint(kind, classes, shards, clean.digest())
    write_index(out / INDEX_FILE, index_schema(kind, columns, identity), (table for _, table in records()))
    write_json(out / STATS_FILE, statistics.as_json(classes))
    info = SetInfo(
        kind=kind,
        source=description.source,
        num_samples=sum(shard.samples for shard in shards),
        classes=classes,
        seed=description.seed,
        fingerprint=identity,
        manifest_sha256=sha256_file(out / MANIFEST_FILE),
        index_sha256=sha256_file(out / INDEX_FILE),
        index_digests=index_digests(out / INDEX_FILE),
        levels=levels,
        shards=tuple(shards),
        primary=description.primary,
        request=description.request,
        parent=description.parent,
        held_out=description.held_out,
        resized=resized,
        forms=dict(sorted(description.forms.items())),
    )
    write_json(out / SET_FILE, info.as_json())
    return info


def refuse_unreadable(
    shown: str, typical: Shard, shards: int, samples: int, columns: int, classes: Iterable[str], *, mend: str
) -> None:
    """Refuse a set whose set.json nobody will read, before anything is made of it.

    Args:
        shown: What a message calls the set.
        typical: One of its shards, with numbers as long as theirs.
        shards: How many there are.
        samples: N.
        columns: Columns of the index.
        classes: Class names.
        mend: What to do, where ``{times}`` says how many times as large shards have to be.

    Raises:
        UserError: If set.json would be too large.
    """
    # What is asked and named takes a few kilobytes besides.
    size = (
        shards * _added("shards", typical.as_json())
        + columns * -(-samples // INDEX_BATCH) * _added("index_digests", "0" * 64)
        + sum(_added("classes", name) for name in classes)
    )
    if size > MOST_BYTES:
        raise UserError(
            f"{shown}: {shards:,} shards make a set.json of about {size:,} bytes, and none above "
            f"{MOST_BYTES:,} is read",
            mend=mend.format(times=-(-size // MOST_BYTES) + 1),
        )


def _added(name: str, item: Any) -> int:
    """Return how many bytes one more item of a list of set.json takes."""
    return len(json_bytes({name: [item, item]})) - len(json_bytes({name: [item]}))


def supervision_digest(table: pa.Table, column: str) -> bytes:
    """Return a hash of the keys and one supervision column of a table."""
    digest = hashlib.sha256()
    text = flat(table[column]).cast(pa.string())
    keys = table["key"]
    if len(text) != len(keys):
        keys = take_rows(keys, owners_of(starts_of(table[column])))
    # KEY \0 VALUE \0, one after another, of several captions with the key before each.
    joined = pc.binary_join_element_wise(keys, text, "", "\0")
    for chunk in joined.cast(pa.large_string()).iterchunks():
        _, offsets, values = chunk.buffers()
        ends = memoryview(offsets).cast("q")
        digest.update(memoryview(values)[ends[chunk.offset] : ends[chunk.offset + len(chunk)]])
    return digest.digest()
