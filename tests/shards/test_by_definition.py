"""Plans and orders equal what their definitions give sample by sample, and stay what they were.

Every set ever written holds such a plan, and every run that resumes such an order: a digest below that
changes is a break of both, whatever the reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import ShardDataset, augmentation_seed
from shards.hashing import hash_keys, mix, mix_one
from shards.layout import write_order
from shards.noise import Flips, NoiseModel, Population
from shards.noise.caption_swap import CaptionSwap
from shards.noise.instance_dependent import InstanceDependent
from shards.noise.pair_flip import PairFlip
from shards.noise.paper_released import PaperReleased
from shards.noise.symmetric import Symmetric
from shards.noise.transition_matrix import TransitionMatrix
from shards.order import StreamOrder
from shards.quota import quota_sequence
from shards.sampler import ElasticBatchSampler, SampleRef
from shards.shardset import ShardSet
from tests.shards import by_definition
from tests.shards.by_definition import digest

SEEDS = (0, 1, 7)
CLASSES = 6
# Unequal classes, two of them of one size, so that turns tie.
SIZES = (40, 31, 31, 17, 8, 3)
LABELS = [label for label, size in enumerate(SIZES) for _ in range(size)]
KEYS = [f"sample-{number}" for number in range(len(LABELS))]
# A third of the captions are one text.
TEXTS = [0 if number % 3 else number for number in range(131)]
# 3 % is an odd count of captions, which ends in a ring of three.
RATIOS = [Fraction(text) for text in ("0.038", "0.1", "0.3")]


def people() -> Population:
    return Population(
        kind="class",
        hashes=hash_keys(KEYS),
        labels=np.array(LABELS),
        num_classes=CLASSES,
        texts=np.empty(0, np.uint64),
        keys=KEYS,
    )


def captions() -> Population:
    keys = [*KEYS, "sample-130"]
    return Population(
        kind="caption",
        hashes=hash_keys(keys),
        labels=np.empty(0, np.int64),
        num_classes=0,
        texts=mix(np.array(TEXTS, np.uint64), 1, "texts"),
        keys=keys,
    )


def matrix() -> np.ndarray:
    values = np.random.default_rng(1).random((CLASSES, CLASSES)) + 6 * np.eye(CLASSES)
    values[2, 4] = 0
    return values / values.sum(axis=1, keepdims=True)


def features() -> np.ndarray:
    """Features whose dimensions differ in place and scale, as an encoder's do."""
    values = np.random.default_rng(2).normal(size=(len(LABELS), 5))
    return values * np.array([1, 10, 0.1, 3, 0]) + np.array([0, 5, -2, 100, 1])


@pytest.fixture
def models(tmp_path: Path) -> dict[str, NoiseModel]:
    np.save(tmp_path / "matrix.npy", matrix())
    np.save(tmp_path / "features.npy", features())
    (tmp_path / "map.csv").write_text("0,3\n1,0\n2,5\n")
    return {
        "symmetric": Symmetric(),
        "pair-flip": PairFlip(),
        "pair-flip by a map": PairFlip(str(tmp_path / "map.csv")),
        "transition-matrix": TransitionMatrix(str(tmp_path / "matrix.npy")),
        "instance-dependent": InstanceDependent(str(tmp_path / "features.npy")),
        "caption-swap": CaptionSwap(),
        "paper-released": PaperReleased(),
    }


def population_of(model: NoiseModel) -> Population:
    return people() if model.kind == "class" else captions()


HASHES = [by_definition.key_hash(key) for key in [*KEYS, "sample-130"]]
TEXT_HASHES = [by_definition.word(text, 1, "texts") for text in TEXTS]
EXPECTED: dict[str, Callable[[int, int], by_definition.Pairs]] = {
    "symmetric": lambda count, seed: by_definition.symmetric(HASHES[:130], LABELS, CLASSES, count, seed),
    "pair-flip": lambda count, seed: by_definition.pair_flip(
        HASHES[:130], LABELS, {label: (label + 1) % CLASSES for label in range(CLASSES)}, CLASSES, count, seed
    ),
    "pair-flip by a map": lambda count, seed: by_definition.pair_flip(
        HASHES[:130], LABELS, {0: 3, 1: 0, 2: 5}, CLASSES, count, seed
    ),
    "transition-matrix": lambda count, seed: by_definition.transition_matrix(
        HASHES[:130], LABELS, matrix().tolist(), count, seed
    ),
    "instance-dependent": lambda count, seed: by_definition.instance_dependent(
        HASHES[:130], LABELS, features().tolist(), CLASSES, count, seed
    ),
    "caption-swap": lambda count, seed: by_definition.caption_swap(HASHES, TEXT_HASHES, count, seed),
    "paper-released": lambda count, seed: sorted(by_definition.paper_released(HASHES, count, seed)),
}


def pairs(name: str, flips: Flips) -> by_definition.Pairs:
    """Return the flips in the order of the plan, but for the one model whose plan has none."""
    found = list(zip(flips.rows.tolist(), flips.values.tolist(), strict=True))
    return sorted(found) if name == "paper-released" else found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_plan_is_what_its_model_s_definition_gives(
    name: str, seed: int, models: dict[str, NoiseModel]
) -> None:
    population = population_of(models[name])
    plans = models[name].plan(population, RATIOS, seed)
    for ratio, flips in zip(RATIOS, plans, strict=True):
        count = round(ratio * len(population))
        assert pairs(name, flips) == EXPECTED[name](count, seed), f"{name} at {float(ratio)}, seed {seed}"


# Digest of the rows and values of the 30 % plan above, at seeds 0, 1 and 7.
PUBLISHED = {
    "symmetric": ("77847dba29b2af62", "377c14cd5d4a6e18", "d6407bf306a5231d"),
    "pair-flip": ("ab8abff520d946fa", "318a50f95ff820d1", "82b914468bd1b4fa"),
    "pair-flip by a map": ("e20380640798c7b2", "2cd5c8442e5332da", "835116ff6775f720"),
    "transition-matrix": ("903b994e0f6d78e3", "3dc6d90595ca7d58", "3bfe05ce2a7a0bd3"),
    "instance-dependent": ("c7efc71474321811", "d35cc65bede88ddc", "38300b44a1eb34d9"),
    "caption-swap": ("ed28e674b6acd26e", "3ddad85e915b1ce3", "8453185598fc9631"),
    "paper-released": ("0629ec03964519a1", "ff9069f0b846bc94", "bc1e2b64a68a5477"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_plan_of_a_model_and_a_seed_never_changes(name: str, models: dict[str, NoiseModel]) -> None:
    population = population_of(models[name])
    found = [models[name].plan(population, RATIOS, seed)[-1] for seed in SEEDS]
    digests = tuple(digest(pairs(name, flips)) for flips in found)
    assert digests == PUBLISHED.get(name), f'PUBLISHED of a new model: "{name}": {digests},'


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_take_turns_by_deadline_and_ties_by_seed(seed: int) -> None:
    ties = mix(np.arange(CLASSES, dtype=np.uint64), seed, "class turn")
    for weights in (SIZES, (5, 5, 5, 5, 5, 5), (1, 0, 97, 1, 1, 1)):
        total = sum(weights)
        found = quota_sequence(np.array(weights), total, ties).tolist()
        assert found == by_definition.turns(weights, total, by_definition.class_ties(CLASSES, seed))


def test_words_of_64_bits_are_the_documented_ones() -> None:
    values = [0, 1, 2**63, 2**64 - 1]
    for seed, purpose in ((0, "select"), (5, "target"), (2**31, "epoch 3 runs")):
        expected = [by_definition.word(value, seed, purpose) for value in values]
        assert mix(np.array(values, np.uint64), seed, purpose).tolist() == expected
        assert [mix_one(value, seed, purpose) for value in values] == expected


def test_samples_are_written_and_augmented_by_their_seed() -> None:
    order = sorted(range(130), key=lambda row: by_definition.word(HASHES[row], 3, "write order"))
    assert write_order(hash_keys(KEYS), 3).tolist() == order
    assert augmentation_seed(3, 2, KEYS[0], 1) == by_definition.word(HASHES[0], 3, "augment 2 1")


def test_a_transform_draws_by_the_data_set_s_seed_the_epoch_the_key_and_the_view(
    digits_set: ShardSet,
) -> None:
    dataset = ShardDataset(digits_set, "n20", lambda _: random.random(), seed=3)
    assert digits_set.level("n20").column == "label_n20"
    for sample, epoch, view in ((0, 0, 0), (7, 2, 1)):
        key = digits_set.index.place(sample).key
        drawn = by_definition.word(by_definition.key_hash(key), 3, f"augment {epoch} {view}")
        assert dataset[SampleRef(sample, epoch, view)].image == random.Random(drawn).random()
        assert dataset[SampleRef(sample, epoch, view)].target == digits_set.index.supervision(
            sample, "label_n20"
        )


# Samples of each of 64 shards: equal, so that streams end where shards do; unequal, so that they do not.
EQUAL = np.full(64, 20)
MIXED = np.where(np.arange(64) % 3, 19, 23)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "as stored"])
@pytest.mark.parametrize(("sizes", "streams"), [(EQUAL, 8), (MIXED, 8), (MIXED, 64), (EQUAL, 3)])
def test_an_epoch_is_read_as_the_order_s_definition_says(
    sizes: np.ndarray, streams: int, shuffle: bool
) -> None:
    ends = np.cumsum(sizes)
    total, epoch = int(ends[-1]), 4
    order = StreamOrder(total, streams, 11, ends, shuffle=shuffle)
    found = order.samples(epoch, np.arange(total // streams * streams)).tolist()
    expected = by_definition.epoch_order(ends.tolist(), streams, 11, epoch, shuffle=shuffle)
    for stream in range(streams):
        of_stream = expected[stream][: total // streams]
        assert found[stream::streams] == of_stream, f"stream {stream} of {streams}"
    # Past its end a stream starts over.
    again = order.samples(epoch, np.array([len(expected[0]) * streams])).tolist()
    assert again == expected[0][:1]


@pytest.mark.parametrize(
    ("sizes", "streams", "published"),
    [(EQUAL, 8, "393722a04456b478"), (MIXED, 8, "a3965e06cb4df3e9"), (MIXED, 64, "7909236839562c43")],
)
def test_whole_epochs_over_64_shards_never_change(sizes: np.ndarray, streams: int, published: str) -> None:
    ends = np.cumsum(sizes)
    order = StreamOrder(int(ends[-1]), streams, 3, ends)
    positions = np.arange(int(ends[-1]))
    assert digest([order.samples(epoch, positions) for epoch in range(3)]) == published


def test_a_sampler_hands_its_seed_and_shuffling_to_the_order() -> None:
    streams, batch, total = 8, 16, 1000
    for shuffle in (True, False):
        expected = by_definition.epoch_order([total], streams, 9, 2, shuffle=shuffle)
        positions = [expected[p % streams][p // streams] for p in range(total // batch * batch)]
        for rank in range(2):
            sampler = ElasticBatchSampler(
                total, global_batch=batch, seed=9, streams=streams, shuffle=shuffle, rank=rank, world=2
            )
            sampler.set_epoch(2)
            assert [ref.index for refs in sampler for ref in refs] == positions[rank::2], f"shuffle={shuffle}"
