"""What a run remembered of its samples, as a Parquet file by sample key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import atomic_writer
from nml.levels import CLEAN_LEVEL
from nml.parquet import read_parquet
from pretrain.fixed_sample import flipped_samples
from pretrain.presentations import Presentations
from shards.shardset import ShardSet

FORMAT = "nml-memorisation/1"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("given", pa.int32()),
        pa.field("true", pa.int32()),
        pa.field("learnt", pa.int32()),
        pa.field("forgotten", pa.int32(), nullable=False),
        pa.field("margin", pa.float32(), nullable=False),
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("times", pa.int32(), nullable=False),
    ]
)
"""A row a sample that was presented.

``sample`` is its number in the set; ``given`` and ``true`` are classes, null for captions; ``learnt`` is the
epoch, counted from 1, in which it was first predicted as given, null if never; ``forgotten`` is how often it
was predicted as given and the next time was not; ``margin`` the mean margin (AUM); ``predicted`` the last
prediction, a class, or the number of the sample whose caption was nearest; ``times`` is how many times it was
presented.
"""
# Rows written at a time.
_ROWS = 65_536


def write_memorisation(path: Path, shard_set: ShardSet, level: str, seen: Presentations) -> None:
    """Write what rank 0 remembers, whole or not at all."""
    with atomic_writer(path) as file, pq.ParquetWriter(file, SCHEMA.with_metadata({"format": FORMAT})) as out:
        for table in _tables(shard_set, level, seen):
            out.write_table(table)


def _tables(shard_set: ShardSet, level: str, seen: Presentations) -> Iterator[pa.Table]:
    state, flipped, index = seen.state, flipped_samples(shard_set, level), shard_set.index
    keys = index.column("key")
    labels = {
        name: index.column(shard_set.level(of).column) if shard_set.kind == "class" else None
        for name, of in (("given", level), ("true", CLEAN_LEVEL))
    }
    for start in range(0, shard_set.num_samples, _ROWS):
        times = state["times"][start : start + _ROWS]
        rows = np.flatnonzero(times) + start
        learnt = state["learnt"][rows]
        yield pa.table(
            {
                "key": keys.slice(start, len(times)).take(rows - start),
                "sample": rows,
                "flipped": flipped[rows],
                **{
                    name: pa.nulls(len(rows), pa.int32())
                    if column is None
                    else column.slice(start, len(times)).take(rows - start)
                    for name, column in labels.items()
                },
                "learnt": pa.array(learnt, mask=learnt == 0),
                "forgotten": state["forgotten"][rows],
                "margin": (state["margin"][rows] / state["times"][rows]).astype(np.float32),
                "predicted": state["predicted"][rows],
                "times": state["times"][rows],
            },
            schema=SCHEMA,
        )


def read_memorisation(path: Path) -> pa.Table:
    """Return the rows of a file that a run wrote, see :data:`SCHEMA`.

    Raises:
        UserError: If there is none, or it is none.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such file",
            possible="of a run with --memorisation that is done",
            mend="run with --memorisation; a run that has begun takes it up where it goes on",
        )
    try:
        stored = pq.read_schema(path).metadata or {}
        if stored.get(b"format", b"").decode(errors="replace") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT}")
        return read_parquet(path).select(SCHEMA.names).cast(SCHEMA)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: does not read: {error}", possible="what pretrain.run wrote") from error


def finding_flipped(flipped: npt.NDArray[np.bool_], measure: npt.NDArray[np.float64]) -> float:
    """Return the area under the ROC curve of finding flipped labels by a measure that is low for them.

    It is the chance that a flipped sample has a lower value than a kept one, ties counted half; NaN where one
    of the two groups is empty.
    """
    from scipy.stats import rankdata

    below, above = int(flipped.sum()), int((~flipped).sum())
    if not below or not above:
        return float("nan")
    ranks = rankdata(measure)
    return float(1 - (ranks[flipped].sum() - below * (below + 1) / 2) / (below * above))
