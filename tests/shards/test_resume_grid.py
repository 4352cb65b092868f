"""Elastic resume through real loaders: stopped anywhere at any world, resumed at every other one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shards.dataset import ShardDataset
from shards.layout import ShardLimits
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet

WORLDS = (1, 2, 4, 8)
WORKERS = (0, 2)
LAYOUTS = [(world, workers) for world in WORLDS for workers in WORKERS]
BATCH = 16
EPOCHS = 2


class Draws:
    """An augmentation that draws from every global random state, and stands for the pixels it saw."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        seen = np.asarray(image).sum()
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return torch.tensor([float(seen), *drawn], dtype=torch.float64)


class GlobalBatch(NamedTuple):
    """What all ranks trained on in one step, in the order of the positions of the epoch."""

    samples: list[int]
    targets: list[int]
    draws: torch.Tensor

    def same(self, other: GlobalBatch) -> bool:
        return (self.samples, self.targets) == (other.samples, other.targets) and torch.equal(
            self.draws, other.draws
        )


class Ranks:
    """The loaders of all ranks of one layout. Their workers live on from run to run, as in training."""

    def __init__(self, shard_set: ShardSet, world: int, workers: int) -> None:
        self.samplers = [
            ElasticBatchSampler(shard_set, global_batch=BATCH, seed=3, streams=8, rank=rank, world=world)
            for rank in range(world)
        ]
        dataset = ShardDataset(shard_set, "n20", Draws(), seed=5)
        self._loaders = [
            DataLoader(dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=bool(workers))
            for sampler in self.samplers
        ]

    def batches(self, state: dict | None = None) -> Iterator[GlobalBatch]:
        """Yield global batches from a saved state, or the beginning, to the end of the last epoch."""
        state = state or self.samplers[0].state_dict(epoch=0, step=0)
        for sampler in self.samplers:
            sampler.load_state_dict(state)
        for epoch in range(state["epoch"], EPOCHS):
            for sampler in self.samplers:
                sampler.set_epoch(epoch)
            for parts in zip(*self._loaders, strict=True):
                yield GlobalBatch(
                    torch.stack([part.index for part in parts], 1).reshape(-1).tolist(),
                    torch.stack([part.target for part in parts], 1).reshape(-1).tolist(),
                    torch.stack([part.image for part in parts], 1).reshape(BATCH, -1),
                )

    def state_after(self, steps: int) -> dict:
        """Return what the last rank saves after training on ``steps`` batches in all."""
        sampler = self.samplers[-1]
        epoch, step = divmod(steps, sampler.steps_per_epoch)
        return sampler.state_dict(epoch=epoch, step=step)


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory, written: Callable, requested: Callable) -> ShardSet:
    """140 tiny images in 5 shards: 8 global batches an epoch, and a tail that is dropped."""
    folder = tmp_path_factory.mktemp("grid")
    pixels = np.random.default_rng(0).integers(0, 256, (140, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "images" / f"class{number % 5}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    request = requested(f"imagefolder:{folder / 'images'}", "0", "0.2", limits=ShardLimits(10**9, 30))
    return written(folder / "set", request)


@pytest.fixture(scope="module")
def layouts(shard_set: ShardSet) -> dict[tuple[int, int], Ranks]:
    return {layout: Ranks(shard_set, *layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def uninterrupted(layouts: dict[tuple[int, int], Ranks]) -> list[GlobalBatch]:
    batches = list(layouts[1, 0].batches())
    assert len(batches) == EPOCHS * 8
    assert not batches[0].same(batches[8])
    return batches


@pytest.mark.parametrize(("world", "workers"), LAYOUTS)
def test_a_run_stopped_at_any_step_resumes_exactly_at_every_world(
    world: int,
    workers: int,
    layouts: dict[tuple[int, int], Ranks],
    uninterrupted: list[GlobalBatch],
) -> None:
    first = layouts[world, workers]
    for number, other in enumerate(LAYOUTS):
        stop = random.Random(f"{world} {workers} {number}").randrange(1, len(uninterrupted))
        before = list(islice(first.batches(), stop))
        after = list(layouts[other].batches(first.state_after(stop)))
        assert len(before) + len(after) == len(uninterrupted)
        for found, expected in zip(before + after, uninterrupted, strict=True):
            assert found.same(expected), (other, stop)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_torchdata_s_own_state_resumes_every_rank_exactly(
    shard_set: ShardSet, world: int, workers: int, uninterrupted: list[GlobalBatch]
) -> None:
    stop = random.Random(f"{world} {workers}").randrange(1, 8)
    rank = world - 1
    expected = [batch.samples[rank::world] for batch in uninterrupted]

    def loader() -> StatefulDataLoader:
        sampler = ElasticBatchSampler(
            shard_set, global_batch=BATCH, seed=3, streams=8, rank=rank, world=world
        )
        dataset = ShardDataset(shard_set, "n20", Draws(), seed=5)
        return StatefulDataLoader(dataset, batch_sampler=sampler, num_workers=workers)

    stopped = loader()
    before = [batch.index.tolist() for batch in islice(stopped, stop)]
    state = stopped.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    first_epoch = list(resumed)
    assert before + [batch.index.tolist() for batch in first_epoch] == expected[:8]
    for batch, whole in zip(first_epoch, uninterrupted[stop:8], strict=True):
        assert torch.equal(batch.image, whole.draws[rank::world])
    assert [batch.index.tolist() for batch in resumed] == expected[8:]
