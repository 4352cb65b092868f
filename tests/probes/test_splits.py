from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nml.errors import UserError
from plugins.head import Head
from plugins.registry import HEADS
from probes.fitting import check_device, fit_points
from probes.heads import HeadChoice
from probes.scoring import evaluate
from probes.splits import carve, flip_labels, fraction_order, store_split, subset_of
from probes.study import study_of
from probes.tasks.samplesets import Texts
from probes.tasks.task import Evaluation
from probes.training_data import Point, TrainingData

LABELS = st.lists(st.integers(0, 4), min_size=10, max_size=120).map(lambda values: np.array(values, np.int64))
PROPERTY = settings(max_examples=30)


class Witness:
    """A head that counts the labels that differ from the clean ones, which are its features."""

    def fit(self, features: Any, labels: Any, *, validation: Any, **_: Any) -> None:
        self.flipped = int((features[:, 0] != labels).sum())
        self.held = int((validation[0][:, 0] != validation[1]).sum())

    def predict_logits(self, features: Any) -> Any:
        return torch.zeros(len(features), 5)

    def transform(self, features: Any) -> Any:
        return features


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
        set(subset_of(fraction_order(keys(labels), seed), labels, Fraction(f)))
        for f in ("0.1", "0.25", "0.5", "0.75", "1")
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


@pytest.mark.parametrize("published", [False, True])
def test_downstream_noise_is_exact_in_every_fraction_and_in_the_validation_data(published: bool) -> None:
    labels = np.arange(500) % 5
    names = keys(labels)
    features = labels[:, None].astype(np.float32)
    data = TrainingData(
        keys=names,
        features=features,
        labels=labels,
        validation_keys=names[:130] if published else None,
        validation_features=features[:130] if published else None,
        validation_labels=labels[:130] if published else None,
        carving=carve(names, labels, published=published),
        num_classes=5,
    )
    choice = HeadChoice(HEADS.find("lp"), cast(type[Head], Witness), None, ({},))
    points = [
        Point(Fraction(fraction), seed, Fraction(noise))
        for fraction, seed, noise in itertools.product(("0.1", "0.25", "1"), range(3), ("0", "0.1", "0.5"))
    ]
    for fitted in fit_points(choice, data, points, "accuracy", "cpu"):
        head = cast(Witness, fitted.head)
        for count, flipped in ((fitted.n_train, head.flipped), (fitted.n_validation, head.held)):
            assert flipped == round(fitted.point.noise * count)
    # Results without noise keep the ids they had when flips were drawn otherwise; the others do not.
    assert json.loads(study_of(choice, data.carving, 0, Fraction(0))).keys() == {
        *("candidates", "rule", "validation_carved", "views")
    }
    assert "flips" in json.loads(study_of(choice, data.carving, 0, Fraction("0.1")))


def test_one_sample_of_each_class_is_too_few_to_carve() -> None:
    with pytest.raises(UserError, match="too few"):
        carve(["a", "b"], np.array([0, 1]), published=False)


def test_masked_classes_never_win() -> None:
    logits = np.array([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0]], np.float32)
    samples = Texts(["a", "b"], np.array([2, 1]), ["a", "b"])
    assert evaluate(logits, Evaluation("x", "ood", samples, (1, 2)), "accuracy").accuracy == 1
    assert evaluate(logits, Evaluation("x", "ood", samples), "accuracy").accuracy == 0


def test_the_samples_set_aside_are_written_once_under_a_name_of_their_own(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    carving = carve(keys(labels), labels, published=False)
    path = store_split(tmp_path, "train-hash", keys(labels), carving)
    rows = pq.read_table(path).to_pydict()
    held = set(carving.validation.tolist())
    assert rows["key"] == keys(labels)
    assert rows["split"] == ["validation" if number in held else "train" for number in range(40)]
    written = path.stat().st_mtime_ns
    assert store_split(tmp_path, "train-hash", keys(labels), carving) == path
    assert path.stat().st_mtime_ns == written
    # Other training data, or other samples set aside, are another split.
    other = carve(keys(labels), np.arange(40) // 20, published=False)
    assert other.validation.tolist() != carving.validation.tolist()
    paths = {path, store_split(tmp_path, "b", keys(labels), carving)}
    assert len({*paths, store_split(tmp_path, "train-hash", keys(labels), other)}) == 3


@pytest.mark.parametrize(
    ("members", "held"), [(1, 0), (2, 1), (4, 1), (5, 1), (14, 1), (16, 2), (25, 2), (26, 3)]
)
def test_a_tenth_of_a_class_is_one_at_least_where_one_is_left(members: int, held: int) -> None:
    labels = np.array([0] * members + [1] * 10)
    carving = carve(keys(labels), labels, published=False)
    assert (labels[carving.validation] == 0).sum() == held
    assert (np.diff(carving.validation) > 0).all()
    assert carving.fit.tolist() == [row for row in range(len(labels)) if row not in carving.validation]


def test_published_validation_data_leaves_all_samples_to_train_on() -> None:
    carving = carve(["a", "b"], np.array([0, 1]), published=True)
    assert (carving.fit.tolist(), carving.validation.tolist()) == ([0, 1], [])


def test_a_study_is_what_is_decided_before_any_fit() -> None:
    carving = carve(keys(np.zeros(20, np.int64)), np.zeros(20, np.int64), published=False)
    choice = HeadChoice(
        HEADS.find("lp"), cast(type[Head], Witness), None, ({"lr": 0.1, "epochs": 3}, {"lr": Fraction(1, 2)})
    )
    expected = {
        "candidates": [{"lr": 0.1, "epochs": 3}, {"lr": "1/2"}],
        "rule": "best validation metric, the first of equals",
        "validation_carved": 2,
        "views": 3,
    }
    found = study_of(choice, carving, 3, Fraction(0))
    # Its letters name results: the order of the names stays.
    assert found == json.dumps(expected, sort_keys=True)
    noisy = {**expected, "flips": "exact in each fraction and in the validation data"}
    assert json.loads(study_of(choice, carving, 3, Fraction("0.1"))) == noisy


def test_a_device_that_there_is_not_is_named() -> None:
    check_device("cpu")
    with pytest.raises(UserError, match="--device nonsense: "):
        check_device("nonsense")
