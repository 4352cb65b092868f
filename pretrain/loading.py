"""The training batches of a rank, from any step on.

One loader serves the whole run: its batches are numbered by the global step alone, so a run
resumes by starting to count elsewhere, and no worker is restarted between epochs.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from nml.errors import UserError
from nml.lifeline import end_with
from nml.recipe import Recipe
from pretrain.world import TIMEOUT, World
from shards.dataset import KnownSample, Sample, ShardDataset
from shards.noise import Integers
from shards.order import StreamOrder
from shards.sampler import ElasticBatchSampler, SampleRef
from shards.shardset import ShardSet


class Batch(NamedTuple):
    """A rank's part of a global batch.

    Attributes:
        images: [V n, 3, H, W] of V views: the first of all samples, then the second of all, ...; uint8 from
            the loader, or float32 and normalised where the recipe erases; always float32 and normalised
            once on the training device.
        targets: Classes, int64 [n], or token ids, int64 [n, context], of the first view.
        indices: Sample numbers in the set, int64 [n].
        truth: What is true of each sample, int64 [n], see :class:`shards.dataset.KnownSample`; None where it
            was not asked for.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    truth: torch.Tensor | None = None


class StepSampler:
    """Yields the rank's samples of each global step from ``start`` to ``stop``.

    With repeated augmentation (Hoffer et al. 2020) position q of an epoch is view q mod R of the
    sample at q div R, so the views of a sample lie on different ranks, a global batch holds
    ``global_batch`` views, and an epoch of equally many steps shows 1/R of the samples, as timm does.
    Where the recipe has them on one rank, the order is cut into as many lanes as divide both the streams and
    the batch. Sample p lies in lane p mod lanes, rank r of W has the lanes l with l mod W = r, and so reads
    its own streams alone. Each step takes equally many views of every lane, whatever the world.

    An objective may ask for ``views`` of each sample beside each other: view v of what would be view r
    otherwise is then r ``views`` + v. Positions and steps stay the same.
    """

    def __init__(
        self, shard_set: ShardSet, recipe: Recipe, world: World, seed: int, *, views: int = 1
    ) -> None:
        self.elastic = ElasticBatchSampler(
            shard_set,
            global_batch=recipe.global_batch,
            rank=world.rank,
            world=world.size,
            seed=seed,
            streams=recipe.data.streams,
        )
        self.repeats = recipe.data.repeats
        self._places = self._on_one_rank if recipe.data.repeats_on == "rank" else self._on_all_ranks
        self.views = views
        self.start = 0
        self.stop = recipe.epochs * self.steps_per_epoch
        ends = np.cumsum([shard.samples for shard in shard_set.info.shards])
        self._order = StreamOrder(shard_set.num_samples, recipe.data.streams, seed, ends)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same at every world size."""
        return self.elastic.steps_per_epoch

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in range(self.start, self.stop):
            yield self.batch(*divmod(step, self.steps_per_epoch))

    def batch(self, epoch: int, step: int) -> list[SampleRef]:
        """Return the rank's samples of one step of an epoch, view by view."""
        found = self._samples(epoch, step)
        if self.views == 1:
            return found
        return [
            ref._replace(view=ref.view * self.views + view) for view in range(self.views) for ref in found
        ]

    def _samples(self, epoch: int, step: int) -> list[SampleRef]:
        positions, views = self._places(step)
        samples = self._order.samples(epoch, positions).tolist()
        return [SampleRef(sample, epoch, view) for sample, view in zip(samples, views.tolist(), strict=True)]

    def _on_all_ranks(self, step: int) -> tuple[Integers, Integers]:
        batch, rank, world = self.elastic.global_batch, self.elastic.rank, self.elastic.world
        places = np.arange(step * batch + rank, (step + 1) * batch, world, dtype=np.int64)
        return places // self.repeats, places % self.repeats

    def _on_one_rank(self, step: int) -> tuple[Integers, Integers]:
        batch, rank, world = self.elastic.global_batch, self.elastic.rank, self.elastic.world
        lanes = math.gcd(batch, self.elastic.streams)
        turns = np.arange(step * batch // lanes, (step + 1) * batch // lanes, dtype=np.int64)
        own = np.arange(rank, lanes, world, dtype=np.int64)[:, None]
        positions = turns // self.repeats * lanes + own
        return positions.ravel(), np.broadcast_to(turns % self.repeats, positions.shape).ravel()

    def state(self, step: int) -> dict[str, Any]:
        """Return what the order of the samples depends on, and the position."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return {**self.elastic.state_dict(epoch=epoch, step=in_epoch), "repeats": self.repeats}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Start from a saved position.

        Raises:
            UserError: If the state is of another set, order, batch or seed.
        """
        if state.get("repeats") != self.repeats:
            raise UserError(
                f"saved sampler state: repeats is {state.get('repeats')}, this run has {self.repeats}",
                mend="resume with the recipe of the run, or start another run folder",
            )
        self.elastic.load_state_dict(state)
        self.start = step


def training_loader(
    dataset: ShardDataset,
    sampler: StepSampler,
    *,
    workers: int,
    pin_memory: bool,
    timeout: timedelta = TIMEOUT,
) -> DataLoader[Batch]:
    """Return the loader of a run."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # collate makes batches of its samples
        batch_sampler=sampler,
        collate_fn=partial(collate, views=sampler.views) if sampler.views > 1 else collate,
        pin_memory=pin_memory,
        **worker_processes(workers, timeout),
        prefetch_factor=2 if workers else None,
        # The loader's base seed would otherwise come from, and advance, the global generator.
        generator=torch.Generator().manual_seed(0),
    )


def collate(samples: list[Sample | KnownSample], views: int = 1) -> Batch:
    """Stack the images of all views, and targets and numbers of the first."""
    firsts = samples[: len(samples) // views]
    targets = [torch.as_tensor(sample.target) for sample in firsts]
    known = [sample.truth for sample in firsts if isinstance(sample, KnownSample)]
    return Batch(
        # In a worker this stacks straight into shared memory.
        default_collate([sample.image for sample in samples]),
        torch.stack(targets),
        torch.tensor([sample.index for sample in firsts]),
        torch.tensor(known) if known else None,
    )


def worker_processes(workers: int, timeout: timedelta) -> dict[str, Any]:
    """Return the arguments by which a DataLoader has worker processes that neither outlive nor hold this one.

    They outlive stop signals, which the training process answers. A batch that takes longer than
    ``timeout`` is an error: a worker may be stopped, or wait for storage that does not answer.
    """
    if not workers:
        return {}
    return {
        "num_workers": workers,
        "worker_init_fn": partial(_as_worker, os.getpid()),
        "multiprocessing_context": "fork",
        "timeout": timeout.total_seconds(),
    }


def _as_worker(parent: int, worker: int) -> None:  # noqa: ARG001 - DataLoader's signature
    """Prepare a loader worker: gone with its parent, one thread, deaf to what the parent answers."""
    end_with(parent, signal.SIGKILL)
    torch.set_num_threads(1)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into ``count`` equal parts, each with all views of its samples.

    Raises:
        UserError: If the rank's batch does not divide.
    """
    if count == 1:
        return [batch]
    number = len(batch.targets)
    if number % count:
        raise UserError(f"micro-batches: {number} samples of a rank do not divide by {count}")
    images = [part.flatten(0, 1) for part in batch.images.unflatten(0, (-1, number)).chunk(count, dim=1)]
    others = [torch.chunk(part, count) for part in (batch.targets, batch.indices)]
    return [Batch(*part) for part in zip(images, *others, strict=True)]


def micro_batch_count(recipe: Recipe, world: World) -> int:
    """Return the smallest number of equal micro-batches within the recipe's limit."""
    rank_batch = recipe.global_batch // world.size
    limit = recipe.engine.micro_batch or rank_batch
    return next(
        count
        for count in range(1, rank_batch + 1)
        if rank_batch % count == 0 and rank_batch // count <= limit
    )
