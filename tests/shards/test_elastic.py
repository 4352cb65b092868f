"""The order of reading: the same global batches at any world size, and exact resume at another."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from nml.errors import UserError
from shards.dataset import Sample, ShardDataset
from shards.order import StreamOrder
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet

WORLDS = (1, 2, 4, 8)
BATCH = 32


class Jitter:
    """An augmentation that draws from every global random state."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(()))])


def samplers(shard_set: ShardSet, world: int, **changes: object) -> list[ElasticBatchSampler]:
    options = {"global_batch": BATCH, "seed": 3, "streams": 16, **changes}
    return [ElasticBatchSampler(shard_set, rank=rank, world=world, **options) for rank in range(world)]


def global_batches(
    shard_set: ShardSet, world: int, state: dict | None = None
) -> Iterator[list[tuple[int, ...]]]:
    """Yield the global batches of an epoch, as the ranks' parts put together."""
    ranks = samplers(shard_set, world)
    for sampler in ranks:
        if state is not None:
            sampler.load_state_dict(state)
    for parts in zip(*ranks, strict=True):
        yield [tuple(ref) for refs in zip(*parts, strict=True) for ref in refs]


def test_global_batches_do_not_depend_on_the_world(digits_set: ShardSet) -> None:
    expected = list(global_batches(digits_set, 1))
    for world in WORLDS[1:]:
        assert list(global_batches(digits_set, world)) == expected


def test_resuming_at_any_world_continues_the_sequence(digits_set: ShardSet) -> None:
    expected = list(global_batches(digits_set, 1))
    for first in WORLDS:
        for second in WORLDS:
            stop = random.Random(10 * first + second).randrange(1, len(expected))
            rank = samplers(digits_set, first)[first - 1]
            iterator = iter(rank)
            for _ in range(stop):
                next(iterator)
            assert list(global_batches(digits_set, second, rank.state_dict())) == expected[stop:]


def test_the_training_process_keeps_its_own_random_state(digits_set: ShardSet) -> None:
    dataset = ShardDataset(digits_set, transform=Jitter())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    _ = dataset[0]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_views_and_epochs_draw_differently(digits_set: ShardSet) -> None:
    dataset = ShardDataset(digits_set, transform=Jitter())
    sampler = samplers(digits_set, 1, views=2)[0]
    refs = next(iter(sampler))
    assert [ref.index for ref in refs[:BATCH]] == [ref.index for ref in refs[BATCH:]]
    assert not torch.equal(dataset[refs[0]].image, dataset[refs[BATCH]].image)
    assert not torch.equal(dataset[refs[0]].image, dataset[refs[0]._replace(epoch=1)].image)


def test_every_sample_is_seen_once_an_epoch_or_at_least_once_with_repeats(digits_set: ShardSet) -> None:
    seen = [ref.index for batch in samplers(digits_set, 1)[0] for ref in batch]
    assert len(seen) == len(set(seen)) == 1248
    repeated = [ref.index for batch in samplers(digits_set, 1, tail="repeat")[0] for ref in batch]
    assert set(repeated) == set(range(1259))


def test_ranks_take_equally_many_steps(digits_set: ShardSet) -> None:
    for tail in ("drop", "repeat"):
        assert len({sum(1 for _ in sampler) for sampler in samplers(digits_set, 8, tail=tail)}) == 1


def test_epochs_follow_each_other_and_differ(digits_set: ShardSet) -> None:
    sampler = samplers(digits_set, 1)[0]
    first, second = ([ref.index for batch in sampler for ref in batch] for _ in range(2))
    assert first != second
    assert sampler.epoch == 2
    sampler.set_epoch(0)
    assert [ref.index for batch in sampler for ref in batch] == first


def test_naming_the_epoch_of_a_loaded_state_keeps_its_step(digits_set: ShardSet) -> None:
    sampler = samplers(digits_set, 1)[0]
    sampler.load_state_dict(sampler.state_dict(epoch=4, step=7))
    sampler.set_epoch(4)
    assert sum(1 for _ in sampler) == len(sampler) - 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 4"),
        ({"global_batch": 64}, "global_batch is 64"),
        ({"streams": 32}, "streams is 32"),
        ({"tail": "repeat"}, "tail is 'repeat'"),
    ],
)
def test_a_state_of_other_options_is_refused(digits_set: ShardSet, change: dict, message: str) -> None:
    state = samplers(digits_set, 1, **change)[0].state_dict()
    with pytest.raises(UserError, match=message):
        samplers(digits_set, 1)[0].load_state_dict(state)


def test_a_state_of_another_set_is_refused(digits_set: ShardSet) -> None:
    state = {**samplers(digits_set, 1)[0].state_dict(), "fingerprint": "0" * 64}
    with pytest.raises(UserError, match="fingerprint"):
        samplers(digits_set, 1)[0].load_state_dict(state)


def test_a_state_says_all_that_the_order_depends_on(digits_set: ShardSet) -> None:
    # Runs were saved with these words and these defaults: others would not resume, or resume otherwise.
    expected = {
        "order": "streams-blocks/1",
        "hashing": "blake2b-splitmix64/1",
        "epoch": 0,
        "step": 0,
        "seed": 0,
        "streams": 64,
        "global_batch": 8,
        "num_samples": 1000,
        "fingerprint": "",
        "tail": "drop",
        "shuffle": True,
    }
    assert ElasticBatchSampler(1000, global_batch=8).state_dict() == expected
    of_set = {"num_samples": 1259, "fingerprint": digits_set.fingerprint}
    other = {"seed": 3, "streams": 16, "tail": "repeat", "shuffle": False}
    sampler = ElasticBatchSampler(digits_set, global_batch=8, world=2, rank=1, views=2, **other)
    assert sampler.state_dict(epoch=3, step=7) == {**expected, **of_set, **other, "epoch": 3, "step": 7}


def test_a_state_at_the_end_of_its_epoch_is_the_last_that_is_taken() -> None:
    sampler = ElasticBatchSampler(1000, global_batch=8)
    steps = len(sampler)
    assert steps == 960 // 8
    sampler.load_state_dict(sampler.state_dict(step=steps))
    assert list(sampler) == []
    assert (sampler.epoch, sampler.step) == (1, 0)
    for step in (-1, steps + 1):
        with pytest.raises(UserError, match=f"step {step}"):
            sampler.load_state_dict(sampler.state_dict(step=step))
    with pytest.raises(UserError, match="tail 'keep'"):
        ElasticBatchSampler(1000, global_batch=8, tail="keep")  # type: ignore[arg-type]


def test_a_stream_may_have_a_single_sample() -> None:
    [batch] = ElasticBatchSampler(8, global_batch=8, streams=8)
    assert len({*batch}) == 8


def test_the_step_of_a_batch_counts_before_it_is_handed_out() -> None:
    sampler = ElasticBatchSampler(100, global_batch=50, streams=10)
    seen = [(sampler.epoch, sampler.step) for _ in range(2) for _ in sampler]
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert (sampler.epoch, sampler.step) == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 3, "rank": 0}, "worlds of 1, 2, 4, 8, 16"),
        ({"world": 1, "rank": 1}, "rank 1 of world 1"),
        ({"global_batch": 0}, "positive numbers"),
        ({"global_batch": 4096}, "at most 1248"),
        ({"streams": 4096}, "at most 1259 streams"),
    ],
)
def test_impossible_numbers_are_refused_with_the_possible_ones(
    digits_set: ShardSet, change: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ElasticBatchSampler(digits_set, **{"global_batch": BATCH, "streams": 16, **change})


@given(
    st.integers(1, 5000),
    st.integers(1, 64),
    st.lists(st.integers(1, 400), max_size=30),
    st.integers(0, 5),
)
def test_an_epoch_visits_each_sample_of_each_stream_once(
    size: int, streams: int, shards: list[int], epoch: int
) -> None:
    streams = min(streams, size)
    ends = np.unique(np.minimum(np.cumsum([*shards, size]), size))
    order = StreamOrder(size, streams, 7, ends)
    positions = np.arange(size // streams * streams)
    found = order.samples(epoch, positions)
    assert len(np.unique(found)) == len(found)
    for position, sample in zip(positions.tolist(), found.tolist(), strict=True):
        low, high = order.stream_range(position % streams)
        assert low <= sample < high


def test_a_position_far_into_fifteen_million_samples_is_found_at_once() -> None:
    size = 15_000_000
    order = StreamOrder(size, 64, 0, np.arange(10_000, size + 1, 10_000))
    found = order.samples(3, np.arange(14_000_000, 14_000_128))
    # One block of each stream is all that is ever computed, and it is computed once.
    assert order._block.cache_info().misses == 64
    assert len(np.unique(found)) == 128


def test_an_order_travels_to_another_process(digits_set: ShardSet) -> None:
    sampler = samplers(digits_set, 2)[1]
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_the_order_of_version_one_is_kept() -> None:
    # A change here breaks the resume of every saved run: VERSION would have to change with it.
    found = StreamOrder(1000, 8, 0, np.array([300, 600, 1000])).samples(1, np.arange(12)).tolist()
    assert found == [70, 211, 324, 417, 596, 680, 806, 933, 45, 238, 294, 421]


def test_collated_samples_keep_their_names(digits_set: ShardSet) -> None:
    loader = DataLoader(
        ShardDataset(digits_set, transform=Jitter()), batch_sampler=samplers(digits_set, 1)[0]
    )
    batch = next(iter(loader))
    assert isinstance(batch, Sample)
    assert batch.image.shape == (BATCH, 3)
