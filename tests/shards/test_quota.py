"""Sharing out picks among classes: within one of every share, at every count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.quota import picks_by_rank, quota_sequence


@given(st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(any))
def test_every_class_is_within_one_of_its_share_at_every_count(sizes: list[int]) -> None:
    weights = np.array(sizes)
    total = int(weights.sum())
    sequence = quota_sequence(weights, total)
    taken = np.cumsum(sequence[:, None] == np.arange(len(sizes)), axis=0)
    # Compared in integers: |taken - k w / total| < 1.
    difference = taken * total - np.arange(1, total + 1)[:, None] * weights
    assert np.abs(difference).max() < total


@given(st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(any), st.data())
def test_a_shorter_sequence_begins_a_longer_one(sizes: list[int], data: st.DataObject) -> None:
    weights = np.array(sizes)
    count = data.draw(st.integers(0, int(weights.sum())))
    assert np.array_equal(quota_sequence(weights, count), quota_sequence(weights, int(weights.sum()))[:count])


def test_a_giant_among_a_thousand_small_classes_gets_its_share() -> None:
    weights = np.array([100_000] + [7] * 999)
    for ratio in (0.01, 0.05, 0.3):
        count = round(ratio * weights.sum())
        taken = np.bincount(quota_sequence(weights, count), minlength=1000)
        assert np.abs(taken - count * weights / weights.sum()).max() < 1


def test_picks_come_in_the_given_order_within_a_class() -> None:
    classes = np.array([0, 1, 0, 1, 0])
    order = np.array([4, 3, 2, 1, 0])
    assert picks_by_rank(classes, order, np.array([0, 1, 0]), 2).tolist() == [4, 3, 2]


def test_a_class_asked_for_more_than_it_has_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 is picked more often"):
        picks_by_rank(np.array([0, 1]), np.array([0, 1]), np.array([1, 1]), 2)
