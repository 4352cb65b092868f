"""A batch sampler whose global batches are the same at any world size, with exact O(1) resume.

Global batch s of an epoch is positions s B to (s + 1) B of :mod:`shards.order`; rank r of W takes
those with p mod W = r. With W dividing both the number of streams and B, every rank reads its own
streams only, takes equally many steps, and the union over the ranks does not depend on W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from nml.errors import UserError
from shards import hashing, order
from shards.shardset import ShardSet

Tail = Literal["drop", "repeat"]
"""What becomes of samples that fill no whole batch."""


class SampleRef(NamedTuple):
    """One sample to load.

    Attributes:
        index: Sample number in the set.
        epoch: Epoch, which with ``view`` keys the augmentation's randomness.
        view: Which of several augmented views of the sample.
    """

    index: int  # type: ignore[assignment]  # every loader calls it so; tuple.index is not missed
    epoch: int
    view: int = 0


_STREAMS_FLAG, _BATCH_FLAG = "--recipe.data.streams", "--recipe.global_batch"


class ElasticBatchSampler:
    """Yields this rank's part of each global batch; pass it to a DataLoader as ``batch_sampler``.

    Args:
        samples: The set, or a number of samples for data that lies elsewhere.
        global_batch: Samples in a step over all ranks, B.
        rank: This process, 0 to ``world`` - 1.
        world: Number of ranks, W; it must divide ``streams`` and ``global_batch``.
        seed: Seed of the order.
        streams: C, the largest world this run may ever resume at. Saved states carry it.
        tail: Samples left over at the end of an epoch are dropped (others each epoch), or the last
            batch is filled up with repeated ones so that each sample is seen at least once.
        shuffle: Without, each stream is read in storage order.
        views: Augmented views of each sample; a batch holds view 0 of all, then view 1 of all.

    Raises:
        UserError: If the numbers do not divide, or the set is smaller than a batch.
    """

    def __init__(
        self,
        samples: ShardSet | int,
        *,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        streams: int = order.DEFAULT_STREAMS,
        tail: Tail = "drop",
        shuffle: bool = True,
        views: int = 1,
    ) -> None:
        self._num_samples = samples if isinstance(samples, int) else samples.num_samples
        self._fingerprint = "" if isinstance(samples, int) else samples.fingerprint
        _check(self._num_samples, global_batch, rank, world, streams, tail)
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.seed = seed
        self.streams = streams
        self.tail = tail
        self.shuffle = shuffle
        self.views = views
        shard_ends = None
        if not isinstance(samples, int):
            shard_ends = np.cumsum([shard.samples for shard in samples.info.shards])
        self._order = order.StreamOrder(self._num_samples, streams, seed, shard_ends, shuffle=shuffle)
        self._epoch = 0
        self._start = 0
        self._step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        if self.tail == "drop":
            # Streams differ by one sample; positions that every stream has are the usable ones.
            usable = self._num_samples // self.streams * self.streams
            return usable // self.global_batch
        longest = -(-self._num_samples // self.streams) * self.streams
        return -(-longest // self.global_batch)

    def __len__(self) -> int:
        return self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration belongs to."""
        return self._epoch

    @property
    def step(self) -> int:
        """Steps of the epoch yielded so far; a DataLoader's workers fetch ahead of the training loop."""
        return self._step

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch's beginning; naming the epoch that a loaded state is in changes nothing."""
        if epoch != self._epoch:
            self._epoch, self._start, self._step = epoch, 0, 0

    def batch(self, epoch: int, step: int) -> list[SampleRef]:
        """Return this rank's part of one global batch, computed without those before it."""
        positions = np.arange(
            step * self.global_batch + self.rank, (step + 1) * self.global_batch, self.world, dtype=np.int64
        )
        samples = self._order.samples(epoch, positions).tolist()
        return [SampleRef(sample, epoch, view) for view in range(self.views) for sample in samples]

    def __iter__(self) -> Iterator[list[SampleRef]]:
        """Yield the epoch's batches from where a loaded state left off, else from its beginning.

        An epoch that ends is followed by the next one; an iteration that is given up starts over.
        """
        epoch = self._epoch
        for step in range(self._start, self.steps_per_epoch):
            # Before the yield: whoever asks in between has this batch already.
            self._epoch, self._step = epoch, step + 1
            yield self.batch(epoch, step)
        self._epoch, self._start, self._step = epoch + 1, 0, 0

    def state_dict(self, *, epoch: int | None = None, step: int | None = None) -> dict[str, Any]:
        """Return the position, and all it depends on.

        A DataLoader with workers pulls batches ahead of the training loop. Name the ``step``
        (batches of this epoch trained on) and ``epoch`` there; StatefulDataLoader keeps count itself.
        """
        return {
            "order": order.VERSION,
            "hashing": hashing.VERSION,
            "epoch": self._epoch if epoch is None else epoch,
            "step": self._step if step is None else step,
            "seed": self.seed,
            "streams": self.streams,
            "global_batch": self.global_batch,
            "num_samples": self._num_samples,
            "fingerprint": self._fingerprint,
            "tail": self.tail,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state left off, also one saved at another world size.

        Raises:
            UserError: If the state is of another set, order, seed, batch or number of streams.
        """
        own = self.state_dict()
        for name in own.keys() - {"epoch", "step"}:
            if state.get(name) != own[name]:
                raise UserError(
                    f"saved sampler state: {name} is {state.get(name)!r}, this run has {own[name]!r}",
                    mend="resume with the set and options the state was saved with, or start a new run",
                )
        epoch, step = state.get("epoch"), state.get("step")
        if not isinstance(step, int) or not 0 <= step <= self.steps_per_epoch:
            raise UserError(f"saved sampler state: step {step!r}", possible=f"0 to {self.steps_per_epoch}")
        if not isinstance(epoch, int) or epoch < 0:
            raise UserError(f"saved sampler state: epoch {epoch!r}", possible="0 and more")
        self._epoch, self._start, self._step = epoch, step, step


def _check(num_samples: int, global_batch: int, rank: int, world: int, streams: int, tail: str) -> None:
    if min(global_batch, world, streams) < 1 or not 0 <= rank < world:
        raise UserError(
            f"batch sampler: global_batch {global_batch}, rank {rank} of world {world}, streams {streams}",
            possible="positive numbers, and rank below world",
        )
    for name, value, flag in (
        ("number of streams", streams, _STREAMS_FLAG),
        ("global batch", global_batch, _BATCH_FLAG),
    ):
        if value % world:
            near = [number for number in range(1, value + 1) if value % number == 0 and streams % number == 0]
            raise UserError(
                f"world size {world}: does not divide the {name} of {value}",
                possible="worlds of " + ", ".join(map(str, near)),
                mend=f"choose another number of processes, or another {name} ({flag} in pre-training)",
            )
    if tail not in ("drop", "repeat"):
        raise UserError(f"tail {tail!r}: not a way to end an epoch", possible="drop, repeat")
    if num_samples < streams:
        raise UserError(
            f"streams {streams}: more than the {num_samples} samples",
            mend=f"use at most {num_samples} streams ({_STREAMS_FLAG} in pre-training)",
        )
    if tail == "drop" and num_samples // streams * streams < global_batch:
        raise UserError(
            f"global batch {global_batch}: the set has only {num_samples} samples",
            mend=f"use a global batch of at most {num_samples // streams * streams} "
            f"({_BATCH_FLAG} in pre-training)",
        )
