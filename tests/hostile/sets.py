"""Sets whose writer meant no good: set.json fits all that lies beside it, hashes included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nml.files import write_json
from shards.manifest import index_digests
from shards.set_info import SetInfo, parse_set_info


def info_of(folder: Path) -> SetInfo:
    return parse_set_info((folder / "set.json").read_bytes(), str(folder))


def with_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what set.json says; without its own hash, as earlier versions wrote it."""
    record = json.loads((folder / "set.json").read_text())
    del record["set_sha256"]
    change(record)
    (folder / "set.json").write_text(json.dumps(record))


def with_index(
    folder: Path, change: Callable[[str, pa.Array], pa.Array], options: pa.ipc.IpcWriteOptions | None = None
) -> None:
    """Write another index, column by column, and let set.json say that it is the one."""
    path = folder / "index.arrow"
    info = info_of(folder)
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batch, schema = reader.get_batch(0), reader.schema
    columns = [change(name, batch.column(name)) for name in schema.names]
    for number, column in enumerate(columns):
        schema = schema.set(number, schema.field(number).with_type(column.type))
    changed = pa.RecordBatch.from_arrays(columns, schema=schema)
    with pa.ipc.new_file(str(path), schema, options=options) as writer:
        writer.write_batch(changed)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    fitting = dataclasses.replace(info, index_digests=index_digests(path), index_sha256=sha256)
    write_json(folder / "set.json", fitting.as_json())


def outside(column: pa.Array) -> pa.Array:
    """Return an array of strings whose offsets lie far outside of what they point into."""
    offsets = np.frombuffer(column.buffers()[1], np.int32).copy()
    offsets[1:-1] = 0x7F000000 + np.arange(len(offsets) - 2) * 8
    buffers = [None, pa.py_buffer(offsets.tobytes()), column.buffers()[2]]
    return pa.Array.from_buffers(column.type, len(column), buffers)


def filled(column: pa.Array, value: Any) -> pa.Array:
    return pa.array([value] * len(column), column.type)
