"""The bundled digits as a shard set, made where none is named."""

from __future__ import annotations

from fractions import Fraction
from numbers import Rational
from pathlib import Path

from nml import layout
from nml.levels import level_name, level_ratio, parse_ratio
from shards.layout import DEFAULT_SHARD_COUNT, DEFAULT_SHARD_SIZE, ShardLimits, parse_size
from shards.shardset import ShardSet
from shards.sources import open_source
from shards.writing import WriteRequest, write_set

DEFAULT_FOLDER = Path(layout.SETS)


def ensure_digits(level: str | float | Rational = "n00", folder: str | Path = DEFAULT_FOLDER) -> ShardSet:
    """Return the bundled training split at one noise level, writing ``FOLDER/digits-n20`` if it is not there.

    Args:
        level: A level name (``n20``) or a noise ratio (0.2).
        folder: Where shard sets lie.

    Raises:
        UserError: If the level is none, or the folder holds something else under that name.
    """
    ratio: Fraction = (
        level_ratio(level) if isinstance(level, str) and level[:1] == "n" else parse_ratio(level)
    )
    out = Path(folder) / layout.digits_set(level_name(ratio))
    request = WriteRequest(
        source="digits",
        ratios=(ratio,),
        model=None,
        model_file=None,
        seed=0,
        limits=ShardLimits(parse_size(DEFAULT_SHARD_SIZE), DEFAULT_SHARD_COUNT),
        options={},
    )
    write_set(out, request, lambda: open_source("digits"), workers=1, wait=True)
    return ShardSet.open(out)
