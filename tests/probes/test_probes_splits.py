from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nml.errors import UserError
from probes.scoring import evaluate, score
from probes.splits import carve, flip_labels, subset
from probes.tasks.samplesets import Texts
from probes.tasks.task import Evaluation

LABELS = st.lists(st.integers(0, 4), min_size=10, max_size=120).map(lambda values: np.array(values, np.int64))
PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)


def keys(labels: np.ndarray) -> list[str]:
    return [f"sample-{number}" for number in range(len(labels))]


@PROPERTY
@given(LABELS)
def test_carving_divides_the_training_data_and_leaves_every_class_something(labels: np.ndarray) -> None:
    carving = carve(keys(labels), labels, published=False)
    assert sorted([*carving.fit, *carving.validation]) == list(range(len(labels)))
    assert set(labels[carving.fit]) == set(labels)


@PROPERTY
@given(LABELS, st.integers(0, 3))
def test_fractions_are_nested_and_hold_every_class(labels: np.ndarray, seed: int) -> None:
    parts = [
        set(subset(keys(labels), labels, Fraction(f), seed)) for f in ("0.1", "0.25", "0.5", "0.75", "1")
    ]
    assert all(small <= large for small, large in itertools.pairwise(parts))
    assert all({labels[row] for row in part} == set(labels) for part in parts)


@PROPERTY
@given(LABELS, st.integers(0, 3))
def test_downstream_noise_is_exact_never_the_clean_label_and_nested(labels: np.ndarray, seed: int) -> None:
    light, heavy = (flip_labels(keys(labels), labels, Fraction(r), 5, seed) for r in ("0.1", "0.5"))
    assert (heavy != labels).sum() == round(Fraction("0.5") * len(labels))
    assert (light != labels).sum() == round(Fraction("0.1") * len(labels))
    changed = light != labels
    assert (light[changed] == heavy[changed]).all()
    assert set(heavy) <= set(range(5))


def test_one_sample_of_each_class_is_too_few_to_carve() -> None:
    with pytest.raises(UserError, match="too few"):
        carve(["a", "b"], np.array([0, 1]), published=False)


def test_masked_classes_never_win() -> None:
    logits = np.array([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0]], np.float32)
    samples = Texts(["a", "b"], np.array([2, 1]), ["a", "b"])
    assert evaluate(logits, Evaluation("x", "ood", samples, (1, 2)), "accuracy").accuracy == 1
    assert evaluate(logits, Evaluation("x", "ood", samples), "accuracy").accuracy == 0


def test_metrics_against_values_computed_by_hand() -> None:
    logits = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    labels = np.array([0, 0, 0, 1])
    assert score(logits, labels, "accuracy").metric == 0.75
    assert score(logits, labels, "mean_per_class").metric == pytest.approx((2 / 3 + 1) / 2)
    assert score(logits, labels, "matthews").metric == pytest.approx(1 / np.sqrt(3))
    assert score(logits, labels, "f1").metric == pytest.approx(2 / 3)
    assert score(10 * logits, labels, "pearson").metric == pytest.approx(1 / np.sqrt(3), abs=1e-3)
