"""The order of an epoch, as a pure function of (seed, epoch, streams): nothing is drawn, all is computed.

The samples are divided among C streams, contiguous runs of equal length (to within one), so a
stream covers whole shards but for the two at its ends. Position p of an epoch belongs to stream
p mod C. Within a stream the shards come in shuffled order, and the samples of a few shards at a
time are shuffled among each other. Any position can be computed without those before it, which is
what makes resuming O(1), at any world size.

VERSION names this algorithm in every saved state; an order that changes gets a new one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shards.hashing import mix
from shards.noise import Integers

VERSION = "streams-blocks/1"
DEFAULT_STREAMS = 64
# Shards whose samples are shuffled among each other: enough to mix, few enough to stay in cache.
BLOCK_SHARDS = 4
# Where samples lie in no shards, runs of this length stand in, so that blocks stay small.
_RUN = 8192


class _StreamEpoch(NamedTuple):
    """A stream's runs of samples in one epoch, block after block.

    Attributes:
        first, last: Samples first[i] to last[i] of each run, in shuffled order of the runs.
        ends: Position in the stream where each block ends, int64 [blocks].
    """

    first: Integers
    last: Integers
    ends: Integers


class StreamOrder:
    """Maps positions of an epoch to samples.

    Args:
        num_samples: N, at least ``streams``.
        streams: C.
        seed: Seed of the order.
        shard_ends: Sample number where each shard ends, int64 [shards]; None for data in no shards.
        shuffle: Whether to shuffle; without, each stream is read in storage order.
    """

    def __init__(
        self,
        num_samples: int,
        streams: int,
        seed: int,
        shard_ends: Integers | None = None,
        *,
        shuffle: bool = True,
    ) -> None:
        self.num_samples = num_samples
        self.streams = streams
        self._seed = seed
        self._shuffle = shuffle
        if shard_ends is None:
            shard_ends = np.append(np.arange(_RUN, num_samples, _RUN), num_samples)
        self._shard_ends = np.asarray(shard_ends)
        # As many entries as a process has streams in flight, and room for the turn of an epoch.
        self._epoch_of_stream = lru_cache(maxsize=2 * streams)(self._make_epoch_of_stream)
        self._block = lru_cache(maxsize=streams + 8)(self._make_block)

    def __getstate__(self) -> tuple[int, int, int, Integers, bool]:
        return self.num_samples, self.streams, self._seed, self._shard_ends, self._shuffle

    def __setstate__(self, state: tuple[int, int, int, Integers, bool]) -> None:
        num_samples, streams, seed, shard_ends, shuffle = state
        StreamOrder.__init__(self, num_samples, streams, seed, shard_ends, shuffle=shuffle)

    def stream_range(self, stream: int) -> tuple[int, int]:
        """Return the samples [first, last) of a stream."""
        return (
            stream * self.num_samples // self.streams,
            (stream + 1) * self.num_samples // self.streams,
        )

    def samples(self, epoch: int, positions: Integers) -> Integers:
        """Return the sample at each position of an epoch, int64 [len(positions)].

        A stream that has run out starts over, so a position past the end repeats a sample of its
        stream's beginning instead of failing.
        """
        found = np.empty(len(positions), np.int64)
        for slot, position in enumerate(positions.tolist()):
            found[slot] = self._sample(epoch, position % self.streams, position // self.streams)
        return found

    def _sample(self, epoch: int, stream: int, place: int) -> int:
        first, last = self.stream_range(stream)
        place %= last - first
        layout = self._epoch_of_stream(epoch, stream)
        block = int(np.searchsorted(layout.ends, place, side="right"))
        start = int(layout.ends[block - 1]) if block else 0
        return int(self._block(epoch, stream, block)[place - start])

    def _make_epoch_of_stream(self, epoch: int, stream: int) -> _StreamEpoch:
        """Cut a stream's range at shard boundaries and shuffle the pieces."""
        low, high = self.stream_range(stream)
        inner = self._shard_ends[np.searchsorted(self._shard_ends, low, side="right") :]
        cuts = np.concatenate([[low], inner[inner < high], [high]]).astype(np.int64)
        first, last = cuts[:-1], cuts[1:]
        if self._shuffle:
            turn = np.argsort(mix(first.astype(np.uint64), self._seed, f"epoch {epoch} runs"), kind="stable")
            first, last = first[turn], last[turn]
        ends = np.cumsum(last - first)
        return _StreamEpoch(
            first, last, np.unique(np.append(ends[BLOCK_SHARDS - 1 :: BLOCK_SHARDS], ends[-1]))
        )

    def _make_block(self, epoch: int, stream: int, block: int) -> Integers:
        """Return the samples of one block in their shuffled order."""
        layout = self._epoch_of_stream(epoch, stream)
        runs = slice(block * BLOCK_SHARDS, (block + 1) * BLOCK_SHARDS)
        samples = np.concatenate(
            [np.arange(a, b) for a, b in zip(layout.first[runs], layout.last[runs], strict=True)]
        )
        if not self._shuffle:
            return samples
        return samples[
            np.argsort(mix(samples.astype(np.uint64), self._seed, f"epoch {epoch} samples"), kind="stable")
        ]
