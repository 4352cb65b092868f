"""Which sample goes into which shard: one global permutation, cut by size and count."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from nml.errors import UserError
from shards import tar
from shards.hashing import Hashes, mix
from shards.noise import Integers

DEFAULT_SHARD_SIZE = "256MB"
DEFAULT_SHARD_COUNT = 10_000

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMG]I?B|)", re.IGNORECASE)


@dataclass(frozen=True)
class ShardLimits:
    """How large a shard may grow; a shard holds at least one sample whatever its size.

    Attributes:
        size: Bytes of a tar file.
        count: Samples.
    """

    size: int
    count: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.count < 1:
            raise UserError(
                f"--max-shard-size {self.size}, --max-shard-count {self.count}: nothing fits",
                possible="1 and above",
            )


def parse_size(text: str, *, where: str = "--max-shard-size") -> int:
    """Return bytes from ``256MB``, ``1GiB`` or a plain number.

    Raises:
        UserError: If the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UserError(f"{where} {text}: not a size", possible="256MB, 1GiB, or a number of bytes")
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def write_order(hashes: Hashes, seed: int) -> Integers:
    """Return the samples in the order they are written, a permutation int64 [N].

    Neighbours in a source share a class or a website; after one global permutation, every run of
    samples is a fair draw, and readers need only shuffle a few shards at a time.
    """
    return np.argsort(mix(hashes, seed, "write order"), kind="stable")


def member_bytes(image_sizes: Integers, supervision_sizes: Integers, json_sizes: Integers) -> Integers:
    """Return an upper bound of the bytes a sample takes in a tar, int64 [N]."""
    total = np.zeros(len(image_sizes), np.int64)
    for sizes in (image_sizes, supervision_sizes, json_sizes):
        total += sizes
        total += tar.BLOCK + -sizes % tar.BLOCK
    return total


def cut(sizes: Integers, limits: ShardLimits) -> Integers:
    """Return shard boundaries, int64 [shards + 1]: shard s holds positions bounds[s] to bounds[s + 1].

    Args:
        sizes: Bytes of each sample in its tar, in write order.
        limits: What a shard may hold.
    """
    ends = np.cumsum(sizes)
    capacity = limits.size - tar.RECORD
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        fits = int(np.searchsorted(ends, before + capacity, side="right"))
        bounds.append(min(max(fits, start + 1), start + limits.count, len(sizes)))
    return np.array(bounds, np.int64)
