"""Splits, scores and the choice of a head equal what their definitions give, computed here a second time."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from plugins.head import Head
from plugins.lp import LinearProbe
from plugins.registry import HEADS
from probes.answers import transform
from probes.fitting import Failed, fit_points
from probes.heads import HeadChoice
from probes.scoring import score
from probes.splits import Carving, carve, flip_labels, fraction_order, subset_of
from probes.tasks.task import Metric
from probes.training_data import Point, TrainingData
from tests.probes import by_definition
from tests.probes.by_definition import metric_of

# Six classes of unlike size, one of a single sample.
LABELS = np.repeat(np.arange(6), (40, 23, 10, 4, 2, 1))[np.random.default_rng(0).permutation(80)]
KEYS = [f"sample-{number}" for number in range(80)]
SEEDS = (0, 1, 7)


def test_a_tenth_of_every_class_is_set_aside_by_the_hash_of_the_keys() -> None:
    carving = carve(KEYS, LABELS, published=False)
    expected = by_definition.carved(KEYS, LABELS.tolist())
    assert carving.validation.tolist() == expected
    assert carving.fit.tolist() == sorted(set(range(80)) - set(expected))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fraction", ["0.1", "0.5", "1"])
def test_a_fraction_of_every_class_is_drawn_by_the_seed(fraction: str, seed: int) -> None:
    expected = by_definition.fraction_of(KEYS, LABELS.tolist(), fraction, seed)
    assert subset_of(fraction_order(KEYS, seed), LABELS, Fraction(fraction)).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_downstream_labels_are_flipped_by_the_seed(seed: int) -> None:
    parts = [list(range(0, 80, 2)), list(range(1, 20, 2))]
    expected = by_definition.flipped(KEYS, LABELS.tolist(), "0.3", 6, seed, parts)
    found = flip_labels(KEYS, LABELS, Fraction("0.3"), 6, seed, [np.array(part) for part in parts])
    assert found.tolist() == expected


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mean_per_class", "matthews", "f1", "pearson"])
def test_a_metric_is_what_its_definition_gives(metric: Metric) -> None:
    classes = 2 if metric == "f1" else 4
    generator = np.random.default_rng(3)
    # Unequal classes, the last of which is predicted and never there: averages of any kind differ.
    labels = generator.choice(classes, 200, p=[0.85, 0.15] if classes == 2 else [0.7, 0.2, 0.1, 0])
    logits = generator.normal(size=(200, classes)) + 1.5 * np.eye(classes)[labels]
    found = score(logits.astype(np.float32), labels, metric)
    assert found.metric_name == metric
    assert found.metric == pytest.approx(metric_of(metric, logits, labels.tolist()), abs=1e-6)
    assert found.accuracy == pytest.approx(metric_of("accuracy", logits, labels.tolist()))
    assert found.macro_f1 == pytest.approx(metric_of("macro_f1", logits, labels.tolist()))


BIASES = (6.0, 2.0, 1.0, 0.5, 0.0, -1.0, -2.0)


class Biased:
    """A head of one hyper-parameter that notes how it is fitted, and names class 0 where it is unsure."""

    fits: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def fit(self, features: Tensor, labels: Tensor, **rest: Any) -> None:
        self.fits.append({"features": features, "labels": labels, "bias": self.bias, **rest})

    def predict_logits(self, features: Tensor) -> Tensor:
        return features[:, 2:] + torch.tensor([self.bias, 0.0, 0.0])


def data_of(views: int = 1, **changes: Any) -> TrainingData:
    """Return 90 samples of three classes; features are the row, the view and a guess of the class."""
    labels = np.repeat(np.arange(3), (70, 15, 5))
    guess = np.random.default_rng(1).normal(size=(90, 3)) + 1.5 * np.eye(3)[labels]
    rows = np.arange(90.0)[:, None]
    features = np.concatenate([np.hstack([rows, np.full((90, 1), float(v)), guess]) for v in range(views)])
    keys = [f"sample-{number}" for number in range(90)]
    given: dict[str, Any] = {
        "keys": keys,
        "features": features.astype(np.float32),
        "labels": labels,
        "validation_keys": None,
        "validation_features": None,
        "validation_labels": None,
        "carving": Carving(np.arange(0, 90, 2), np.arange(1, 90, 2)),
        "num_classes": 3,
    }
    return TrainingData(**{**given, **changes})


def choice_of(make: type, *candidates: dict[str, Any]) -> HeadChoice:
    return HeadChoice(HEADS.find("lp"), cast(type[Head], make), None, candidates)


@pytest.fixture
def fits() -> list[dict[str, Any]]:
    Biased.fits.clear()
    return Biased.fits


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mean_per_class", "matthews"])
def test_the_head_is_chosen_by_the_metric_of_the_task_on_validation_data(
    metric: Metric, fits: list[dict[str, Any]]
) -> None:
    data, biases = data_of(), BIASES
    held = data.carving.validation
    expected = [
        metric_of(metric, data.features[held][:, 2:] + [bias, 0, 0], data.labels[held].tolist())
        for bias in biases
    ]
    choice = choice_of(Biased, *[{"bias": bias} for bias in biases])
    [fitted] = fit_points(choice, data, [Point(Fraction(1), 0, Fraction(0))], metric, "cpu")
    told = json.loads(fitted.selection)
    assert told["metric"] == metric
    assert told["validation"] == pytest.approx(expected)
    assert told["chosen"] == expected.index(max(expected))
    assert cast(Biased, fitted.head).bias == biases[told["chosen"]]
    assert json.loads(fitted.hyper_parameters) == {"bias": biases[told["chosen"]]}


def test_metrics_choose_different_heads() -> None:
    # Without this the test above could not tell one metric from another.
    data, biases = data_of(), BIASES
    held = data.carving.validation
    best = {}
    for metric in ("accuracy", "macro_f1", "mean_per_class"):
        values = [
            metric_of(metric, data.features[held][:, 2:] + [bias, 0, 0], data.labels[held].tolist())
            for bias in biases
        ]
        best[metric] = values.index(max(values))
    assert len(set(best.values())) == 3, best


def test_every_view_of_a_sample_is_trained_on_with_the_label_of_the_sample(
    fits: list[dict[str, Any]],
) -> None:
    data = data_of(views=3)
    fit_points(choice_of(Biased, {}), data, [Point(Fraction(1), 0, Fraction(0))], "accuracy", "cpu")
    rows, views = (fits[0]["features"][:, column].long().tolist() for column in (0, 1))
    assert sorted(zip(rows, views, strict=True)) == [
        (row, view) for row in range(0, 90, 2) for view in range(3)
    ]
    assert fits[0]["labels"].tolist() == data.labels[rows].tolist()
    held = fits[0]["validation"]
    assert held[0][:, 0].long().tolist() == data.carving.validation.tolist()
    assert held[1].tolist() == data.labels[data.carving.validation].tolist()


@pytest.mark.parametrize("noise", ["0", "0.2"])
def test_a_head_gets_the_samples_labels_and_seed_of_its_point(noise: str, fits: list[dict[str, Any]]) -> None:
    data = data_of()
    points = [Point(Fraction(part), seed, Fraction(noise)) for part in ("0.5", "1") for seed in (3, 8)]
    fit_points(choice_of(Biased, {}), data, points, "accuracy", "cpu")
    fit = data.carving.fit
    for point, seen in zip(points, fits, strict=True):
        rows = fit
        if point.fraction < 1:
            order = fraction_order([data.keys[row] for row in fit], point.seed)
            rows = fit[subset_of(order, data.labels[fit], point.fraction)]
        parts = [rows, data.carving.validation]
        labels = flip_labels(data.keys, data.labels, point.noise, 3, point.seed, parts)
        assert seen["seed"] == point.seed
        assert (seen["num_classes"], seen["device"]) == (3, "cpu")
        assert seen["features"][:, 0].long().tolist() == rows.tolist()
        assert seen["labels"].tolist() == labels[rows].tolist()
        assert seen["validation"][1].tolist() == labels[data.carving.validation].tolist()


class Breaking(Biased):
    """A head that cannot be fitted, each candidate for a reason of its own."""

    def fit(self, features: Tensor, labels: Tensor, **rest: Any) -> None:
        raise ValueError(f"no fit with {self.bias:g}")


def test_a_point_without_a_head_tells_what_is_wrong_with_the_first_candidate() -> None:
    choice, point = choice_of(Breaking, {"bias": 7.0}, {"bias": 8.0}), Point(Fraction(1), 3, Fraction(0))
    [failed] = fit_points(choice, data_of(), [point], "accuracy", "cpu")
    assert isinstance(failed, Failed)
    assert failed.point == point
    assert "no fit with 7" in failed.reason


def test_a_head_trained_with_others_gets_the_seed_of_its_point() -> None:
    data = data_of()
    points = [Point(Fraction(1), seed, Fraction(0)) for seed in (3, 8)]
    for point, fitted in zip(
        points,
        fit_points(choice_of(LinearProbe, {"epochs": 2}), data, points, "accuracy", "cpu"),
        strict=True,
    ):
        rows = torch.from_numpy(data.carving.fit)
        alone = LinearProbe(epochs=2).fit(
            torch.from_numpy(data.features)[rows],
            torch.from_numpy(data.labels)[rows],
            num_classes=3,
            seed=point.seed,
        )
        found = cast(LinearProbe, fitted.head).state_dict()
        torch.testing.assert_close(found["classifier.weight"], alone.state_dict()["classifier.weight"])


def test_noisy_published_validation_labels_are_flipped_by_the_seed_too(fits: list[dict[str, Any]]) -> None:
    names = [f"held-{number}" for number in range(30)]
    held = data_of().features[:30], np.arange(30) % 3
    data = data_of(
        validation_keys=names,
        validation_features=held[0],
        validation_labels=held[1],
        carving=Carving(np.arange(90), np.arange(0)),
    )
    fit_points(choice_of(Biased, {}), data, [Point(Fraction(1), 5, Fraction("0.2"))], "accuracy", "cpu")
    expected = flip_labels(names, held[1], Fraction("0.2"), 3, 5)
    assert fits[0]["validation"][1].tolist() == expected.tolist()


class Telling(Biased):
    """A head that says what it chose by itself, if anything."""

    outcome: ClassVar[dict[str, Any]] = {}

    def transform(self, features: Tensor) -> Tensor:
        return features * 2


def test_what_a_head_chose_by_itself_is_told_and_nothing_where_it_chose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = Point(Fraction(1), 0, Fraction(0))
    [silent] = fit_points(choice_of(Telling, {}), data_of(), [point], "accuracy", "cpu")
    assert json.loads(silent.selection).keys() == {"chosen", "metric", "tries", "validation"}
    monkeypatch.setattr(Telling, "outcome", {"k": 3})
    [telling] = fit_points(choice_of(Telling, {}), data_of(), [point], "accuracy", "cpu")
    assert json.loads(telling.selection)["outcome"] == {"k": 3}
    assert (telling.n_train, telling.n_validation) == (45, 45)
    assert telling.seconds >= 0
    features = np.ones((2, 3), np.float32)
    assert transform(telling.head, features).tolist() == (features * 2).tolist()
