"""Turn finished shards into a set: manifest, index, statistics, and set.json last of all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from nml.files import sha256_file, write_json
from shards.ladder import clean_column
from shards.manifest import Statistics, index_schema, manifest_schema, write_index, write_manifest
from shards.packshards import read_record
from shards.setfile import INDEX_FILE, MANIFEST_FILE, SET_FILE, STATS_FILE, SetInfo, Shard, fingerprint

if TYPE_CHECKING:
    from shards.writing import Plan, WriteRequest


def finish(out: Path, work: Path, plan: Plan, request: WriteRequest) -> SetInfo:
    """Write what describes the finished shards, set.json last, and return it."""
    kind, classes = plan.catalogue.kind, plan.catalogue.classes
    columns = [clean_column(kind), *(level.column for level in plan.levels.values())]
    statistics = Statistics(
        kind, len(classes or ()), {name: level.column for name, level in plan.levels.items()}
    )
    shards: list[Shard] = []
    clean = hashlib.sha256()

    def tables() -> Iterator[pa.Table]:
        for number in range(plan.shards):
            shard, table = read_record(work, number)
            shards.append(shard)
            statistics.add(table)
            clean.update(supervision_digest(table, columns[0]))
            yield table

    write_manifest(out / MANIFEST_FILE, manifest_schema(kind, columns), tables())
    identity = fingerprint(kind, classes, shards, clean.digest())
    records = (read_record(work, number)[1] for number in range(plan.shards))
    write_index(out / INDEX_FILE, index_schema(kind, columns, identity), records)
    write_json(out / STATS_FILE, statistics.as_json(classes))
    info = SetInfo(
        kind=kind,
        source=request.source,
        num_samples=sum(shard.samples for shard in shards),
        classes=classes,
        seed=request.seed,
        fingerprint=identity,
        manifest_sha256=sha256_file(out / MANIFEST_FILE),
        index_sha256=sha256_file(out / INDEX_FILE),
        levels=plan.levels,
        shards=tuple(shards),
        primary=plan.primary,
        request=request.as_json(),
        parent=plan.parent,
    )
    write_json(out / SET_FILE, info.as_json())
    return info


def supervision_digest(table: pa.Table, column: str) -> bytes:
    """Return a hash of the keys and one supervision column of a table."""
    digest = hashlib.sha256()
    for key, value in zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True):
        digest.update(f"{key}\0{value}\0".encode())
    return digest.digest()
