"""What every noise plan promises: exact, never the clean value, balanced, nested, order-free, uniform."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from nml.errors import UserError
from shards.hashing import mix
from shards.noise import Flips, Population
from shards.noise.caption_swap import CaptionSwap
from shards.noise.paper_released import PaperReleased
from shards.noise.symmetric import Symmetric

RATIOS = [Fraction(text) for text in ("0.01", "0.05", "0.1", "0.2", "0.29", "0.3")]


def class_population(labels: np.ndarray, num_classes: int, start: int = 0) -> Population:
    # Any distinct 64-bit numbers do for key hashes.
    hashes = mix(np.arange(start, start + len(labels), dtype=np.uint64), 1, "test keys")
    return Population(
        kind="class",
        hashes=hashes,
        labels=labels.astype(np.int64),
        num_classes=num_classes,
        texts=np.empty(0, np.uint64),
    )


def caption_population(texts: np.ndarray) -> Population:
    hashes = mix(np.arange(len(texts), dtype=np.uint64), 1, "test keys")
    return Population(
        kind="caption",
        hashes=hashes,
        labels=np.empty(0, np.int64),
        num_classes=0,
        texts=mix(texts.astype(np.uint64), 1, "texts"),
    )


def shuffled(population: Population, seed: int) -> tuple[Population, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(population))
    return (
        Population(
            kind=population.kind,
            hashes=population.hashes[order],
            labels=population.labels[order] if len(population.labels) else population.labels,
            num_classes=population.num_classes,
            texts=population.texts[order] if len(population.texts) else population.texts,
        ),
        order,
    )


@st.composite
def class_labels(draw: st.DrawFn) -> tuple[np.ndarray, int, bool]:
    """Labels of K classes, equal in size or as unequal as a power law makes them."""
    num_classes = draw(st.sampled_from([2, 10, 100, 1000]))
    total = draw(st.integers(2 * num_classes, 200_000))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if equal := draw(st.booleans()):
        labels = np.repeat(np.arange(num_classes), total // num_classes)
    else:
        weights = generator.pareto(draw(st.sampled_from([0.7, 1.5, 5.0])), num_classes) + 1e-3
        labels = generator.choice(num_classes, total, p=weights / weights.sum())
    generator.shuffle(labels)
    return labels, num_classes, equal


@given(class_labels(), st.integers(0, 2**31))
@settings(max_examples=40)
def test_symmetric_noise_keeps_all_its_promises(case: tuple[np.ndarray, int, bool], seed: int) -> None:
    labels, num_classes, _ = case
    population = class_population(labels, num_classes)
    plans = Symmetric().plan(population, RATIOS, seed)
    sizes = np.bincount(labels, minlength=num_classes)
    for ratio, (rows, values) in zip(RATIOS, plans, strict=True):
        assert len(rows) == len(np.unique(rows)) == round(ratio * len(labels))
        assert not np.any(values == labels[rows])
        assert values.min(initial=0) >= 0
        assert values.max(initial=0) < num_classes
        taken = np.bincount(labels[rows], minlength=num_classes)
        share = len(rows) * sizes / len(labels)
        assert np.abs(taken - share).max() < 1
    for (low, low_values), (high, high_values) in pairwise(plans):
        assert np.array_equal(low, high[: len(low)])
        assert np.array_equal(low_values, high_values[: len(low)])


@given(class_labels(), st.integers(0, 2**31))
@settings(max_examples=15)
def test_a_plan_does_not_depend_on_the_order_of_the_samples(
    case: tuple[np.ndarray, int, bool], seed: int
) -> None:
    labels, num_classes, _ = case
    population = class_population(labels, num_classes)
    other, order = shuffled(population, seed)
    plain, moved = (Symmetric().plan(each, [Fraction(1, 5)], seed)[0] for each in (population, other))
    assert np.array_equal(plain.rows, order[moved.rows])
    assert np.array_equal(plain.values, moved.values)


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_wrong_labels_are_uniform_over_the_other_classes(num_classes: int) -> None:
    labels = np.arange(200_000) % num_classes
    rows, values = Symmetric().plan(class_population(labels, num_classes), [Fraction(3, 10)], 0)[0]
    step = (values - labels[rows]) % num_classes
    counts = np.bincount(step, minlength=num_classes)[1:]
    expected = len(rows) / (num_classes - 1)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Two-sided: too even would be as suspect as too uneven.
    assert chi2.sf(statistic, max(num_classes - 2, 1)) > 1e-4 or num_classes == 2
    assert num_classes < 10 or chi2.cdf(statistic, num_classes - 2) > 1e-4


def test_one_class_cannot_be_flipped() -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        Symmetric().plan(class_population(np.zeros(10), 1), [Fraction(1, 10)], 0)


@given(
    st.integers(3, 3000),
    st.integers(1, 3000),
    st.lists(st.fractions(0, 1), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_caption_swaps_are_exact_and_use_each_caption_once(
    size: int, distinct: int, ratios: list[Fraction], seed: int
) -> None:
    population = caption_population(np.random.default_rng(seed).integers(0, distinct, size))
    ratios = [ratio for ratio in sorted(ratios) if ratio < 1 and round(ratio * size) != 1]
    for ratio, (rows, values) in zip(ratios, CaptionSwap().plan(population, ratios, seed), strict=True):
        assert len(rows) == len(np.unique(rows)) == round(ratio * size)
        assert not np.any(rows == values)
        assert np.array_equal(np.sort(rows), np.sort(values))


@given(st.integers(50, 2000), st.integers(0, 2**31))
def test_even_caption_levels_are_nested_with_the_same_wrong_caption(size: int, seed: int) -> None:
    population = caption_population(np.arange(size))
    low, high = CaptionSwap().plan(population, [Fraction(10, size), Fraction(20, size)], seed)
    assert np.array_equal(low.rows, high.rows[:10])
    assert np.array_equal(low.values, high.values[:10])


@given(st.integers(4, 40), st.integers(1, 40), st.data(), st.integers(0, 2**31))
def test_caption_levels_differ_by_no_more_than_the_rings_of_three_allow(
    size: int, distinct: int, data: st.DataObject, seed: int
) -> None:
    texts = np.random.default_rng(seed).integers(0, distinct, size)
    counts = sorted(data.draw(st.sets(st.integers(2, size), min_size=2, max_size=2)))
    low, high = (
        dict(zip(plan.rows.tolist(), texts[plan.values].tolist(), strict=True))
        for plan in CaptionSwap().plan(caption_population(texts), [Fraction(n, size) for n in counts], seed)
    )
    changed = [row for row, text in low.items() if text != texts[row]]
    clean_again = [row for row in changed if high[row] == texts[row]]
    otherwise = [row for row in changed if high[row] not in (texts[row], low[row])]
    allowed = 2 if counts[0] % 2 else counts[1] % 2
    assert len(clean_again) <= allowed
    assert len(otherwise) <= allowed


def test_an_odd_caption_level_differs_from_a_higher_one_in_two_samples() -> None:
    low, high = CaptionSwap().plan(
        caption_population(np.arange(100)), [Fraction(11, 100), Fraction(20, 100)], 0
    )
    wrong = dict(zip(high.rows.tolist(), high.values.tolist(), strict=True))
    differ = [
        row for row, value in zip(low.rows.tolist(), low.values.tolist(), strict=True) if wrong[row] != value
    ]
    assert set(low.rows.tolist()) <= wrong.keys()
    assert len(differ) <= 2


def changed_texts(population: Population, flips: Flips) -> int:
    return int(np.count_nonzero(population.texts[flips.rows] != population.texts[flips.values]))


def test_duplicate_captions_are_paired_with_other_texts() -> None:
    texts = np.where(np.arange(10_000) % 2, np.arange(10_000), 0)
    population = caption_population(texts)
    flips = CaptionSwap().plan(population, [Fraction(3, 10)], 0)[0]
    assert changed_texts(population, flips) == len(flips.rows) == 3000


def test_equal_texts_are_moved_only_where_no_other_is_left() -> None:
    population = caption_population(np.array([7] * 90 + list(range(100, 110))))
    flips = CaptionSwap().plan(population, [Fraction(1, 2)], 0)[0]
    assert len(flips.rows) == 50
    assert changed_texts(population, flips) == 20


def met_one_by_one(texts: list[int]) -> list[tuple[int, int]]:
    """Pair each sample with the latest that waits for another text: what block-wise pairing must equal."""
    pairs, waiting = [], []
    for row, text in enumerate(texts):
        if waiting and texts[waiting[-1]] != text:
            pairs.append((waiting.pop(), row))
        else:
            waiting.append(row)
    return pairs


@given(st.integers(2, 3000), st.sampled_from([1, 2, 5, 3000]), st.floats(0, 1), st.integers(0, 2**31))
def test_whatever_captions_repeat_samples_pair_up_as_if_they_met_one_by_one(
    size: int, distinct: int, empty: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    texts = np.where(generator.random(size) < empty, 0, generator.integers(0, distinct, size))
    population = caption_population(texts)
    order = population.order(seed, "select")
    pairs = met_one_by_one(population.texts[order].tolist())
    rows, values = CaptionSwap().plan(population, [Fraction(2 * len(pairs), size)], seed)[0]
    assert list(zip(rows[::2], rows[1::2], strict=True)) == [(order[a], order[b]) for a, b in pairs]
    assert np.array_equal(values.reshape(-1, 2), rows.reshape(-1, 2)[:, ::-1])


def test_a_single_caption_cannot_be_swapped() -> None:
    with pytest.raises(UserError, match=r"at least 0\.02"):
        CaptionSwap().plan(caption_population(np.arange(100)), [Fraction(1, 100)], 0)


def test_the_released_swap_misses_its_ratio_as_it_does_in_the_paper_s_code() -> None:
    population = caption_population(np.arange(100_000))
    ratios = [Fraction(text) for text in ("0.05", "0.1", "0.2", "0.3")]
    realised = [len(flips.rows) / 100_000 for flips in PaperReleased().plan(population, ratios, 0)]
    assert realised == pytest.approx([0.049, 0.095, 0.181, 0.259], abs=0.002)
