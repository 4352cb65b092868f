"""Rows of text tasks in one form, and the Parquet file they are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import atomic_writer
from probes.tasks.by_hand import Row

# Rows that are converted and written at once.
BATCH_ROWS = 10_000


class Example(NamedTuple):
    """One row of a task of texts.

    Attributes:
        text: The text, or the first of a pair.
        pair: The second of a pair; None where there is none.
        label: Class, from 0; or a number that is predicted.
    """

    text: str
    pair: str | None
    label: int | float


Convert = Callable[[Row], Example | None]
"""From a row of a source to an example; None leaves the row out."""


def write_examples(path: Path, examples: Iterable[Example | None]) -> None:
    """Write texts, or pairs of them, and their labels, whole or not at all.

    Raises:
        UserError: If there is none.
    """
    kept = (example for example in examples if example is not None)
    first = next(kept, None)
    if first is None:
        raise UserError(f"no example for {path}", mend="check the source")
    # The usual names, by which read_parquet finds them.
    kind = pa.float64() if isinstance(first.label, float) else pa.int64()
    fields = [("text", pa.string()), ("text2", pa.string()), ("label", kind)]
    schema = pa.schema([field for field in fields if first.pair is not None or field[0] != "text2"])
    with atomic_writer(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        batch = [first]
        for example in kept:
            batch.append(example)
            if len(batch) == BATCH_ROWS:
                writer.write_table(_table(batch, schema))
                batch = []
        if batch:
            writer.write_table(_table(batch, schema))


def _table(examples: list[Example], schema: pa.Schema) -> pa.Table:
    columns = dict(zip(("text", "text2", "label"), zip(*examples, strict=True), strict=True))
    return pa.table([columns[name] for name in schema.names], schema=schema)
