"""Any two features of probing that may meet: a head is the one that is fitted alone, chosen by definition.

The rows are those of tests/crossings.yaml. Splits, flips and metrics come from tests/probes/by_definition.py;
a head alone gets the samples and labels that these name, and nothing of the other fits of its row.
"""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch

from nml import cli
from probes.answers import predict
from probes.fitting import Fitted, fit_points
from probes.heads import HeadChoice, choose_heads
from probes.matching import check_match, check_target
from probes.scoring import score
from probes.splits import carve
from probes.training_data import Point, TrainingData
from tests.crossings import Crossings, Refusal, Row, label
from tests.probes import by_definition

CROSSINGS = Crossings("probing")
TRAIN, OTHERS, WIDTH = 90, 30, 6
# Of scores and of metrics: heads that are trained together add in another order.
BOUND = 1e-5


class Sample(NamedTuple):
    """Keys, features of every view, and labels."""

    keys: list[str]
    features: np.ndarray
    labels: np.ndarray


def classes_of(row: Row) -> int:
    return int(CROSSINGS.value("metric", row["metric"]).get("classes", 4))


def target_of(row: Row) -> str:
    return str(CROSSINGS.value("metric", row["metric"]).get("target", "classification"))


def outputs_of(row: Row) -> int:
    return 1 if target_of(row) == "regression" else classes_of(row)


def sample(name: str, count: int, classes: int, target: str, views: int = 0) -> Sample:
    """Return samples of unequal classes, whose features tell of their labels."""
    generator = np.random.default_rng(len(name))
    labels = np.array([min(number % 9 // 2, classes - 1) for number in range(count)])
    centre = generator.normal(size=(count, WIDTH)) + 2 * np.eye(WIDTH)[labels]
    if target == "regression":
        labels = 50 + 7 * centre[:, 0]
    if target == "multilabel":
        labels = centre[:, :classes] > 1
    features = [centre + 0.1 * generator.normal(size=(count, WIDTH)) for _ in range(views + 1)]
    keys = [f"{name}-{number}" for number in range(count)]
    return Sample(keys, np.concatenate(features).astype(np.float32), labels)


def samples_of(row: Row) -> tuple[Sample, Sample | None, Sample]:
    """Return training data, published validation data and test data."""
    classes = classes_of(row)
    told = (classes, target_of(row))
    published = sample("held", OTHERS, *told) if row["validation"] == "published" else None
    return sample("train", TRAIN, *told, int(row["views"])), published, sample("unseen", OTHERS, *told)


def choice_of(row: Row) -> HeadChoice:
    settings = CROSSINGS.value("head", row["head"])
    hyper = [settings["hyper"], *([settings["choice"]] if row["candidates"] == "two" else [])]
    [choice] = choose_heads(row["head"], hyper, row["modality"], tries=1)
    return choice


def points_of(row: Row) -> list[Point]:
    fractions = CROSSINGS.value("fractions", row["fractions"])["fractions"]
    seeds = CROSSINGS.value("seeds", row["seeds"])["seeds"]
    noise = Fraction(CROSSINGS.value("noise", row["noise"])["noise"])
    return [Point(Fraction(fraction), seed, noise) for fraction in fractions for seed in seeds]


def fitted_together(row: Row) -> list[Fitted]:
    train, published, _ = samples_of(row)
    data = TrainingData(
        keys=train.keys,
        features=train.features,
        labels=train.labels,
        validation_keys=published.keys if published else None,
        validation_features=published.features if published else None,
        validation_labels=published.labels if published else None,
        carving=carve(train.keys, train.labels, published=published is not None),
        num_classes=outputs_of(row),
    )
    return fit_points(choice_of(row), data, points_of(row), cast(Any, row["metric"]), "cpu")


def flipped(data: Sample, ratio: str, classes: int, seed: int, parts: list[list[int]]) -> np.ndarray:
    if Fraction(ratio) == 0:
        return data.labels
    return np.array(by_definition.flipped(data.keys, data.labels.tolist(), ratio, classes, seed, parts))


def fitted_alone(row: Row, point: Point) -> tuple[list[Any], list[float]]:
    """Return the heads of a point, one a candidate, and how each scores on validation data."""
    train, published, _ = samples_of(row)
    classes, noise = classes_of(row), str(float(point.noise))
    groups = by_definition.groups(train.labels)
    held = [] if published else by_definition.carved(train.keys, groups)
    fit = [number for number in range(TRAIN) if number not in held]
    part = by_definition.fraction_of(
        [train.keys[number] for number in fit],
        [groups[number] for number in fit],
        str(float(point.fraction)),
        point.seed,
    )
    rows = [fit[place] for place in part]
    labels = flipped(train, noise, classes, point.seed, [rows, held])
    if published:
        given = flipped(published, noise, classes, point.seed, [list(range(OTHERS))])
        validation = published.features, given
    else:
        validation = train.features[held], labels[held]
    seen = [number + view * TRAIN for view in range(int(row["views"]) + 1) for number in rows]
    choice = choice_of(row)
    heads = [choice.make(**candidate) for candidate in choice.candidates]
    for head in heads:
        head.fit(
            torch.from_numpy(train.features[seen]),
            torch.from_numpy(labels[[number % TRAIN for number in seen]]),
            validation=(torch.from_numpy(validation[0]), torch.from_numpy(validation[1])),
            num_classes=outputs_of(row),
            seed=point.seed,
        )
    logits = [head.predict_logits(torch.from_numpy(validation[0])).numpy() for head in heads]
    return heads, [
        by_definition.metric_of(cast(Any, row["metric"]), values, validation[1].tolist()) for values in logits
    ]


@pytest.mark.parametrize("row", CROSSINGS.rows, ids=label)
def test_a_head_is_the_one_that_is_fitted_alone_and_chosen_by_definition(row: Row) -> None:
    _, _, unseen = samples_of(row)
    together = fitted_together(row)
    assert [fitted.point for fitted in together] == points_of(row)
    bound = CROSSINGS.value("head", row["head"]).get("bound", BOUND)
    for fitted in together:
        heads, scores = fitted_alone(row, fitted.point)
        told = json.loads(fitted.selection)
        assert told["validation"] == pytest.approx(scores, abs=bound)
        assert told["chosen"] == scores.index(max(scores))
        logits = predict(fitted.head, unseen.features, outputs_of(row))
        alone = heads[told["chosen"]].predict_logits(torch.from_numpy(unseen.features)).numpy()
        np.testing.assert_allclose(logits, alone, rtol=bound, atol=bound)
        metric = cast(Any, row["metric"])
        found = score(logits, unseen.labels, metric)
        expected = by_definition.metric_of(metric, logits, unseen.labels.tolist())
        assert found.metric == pytest.approx(expected, abs=1e-6)
        if target_of(row) == "classification":
            assert found.accuracy == by_definition.metric_of("accuracy", logits, unseen.labels.tolist())


@pytest.mark.parametrize("refusal", CROSSINGS.refused, ids=lambda refusal: label(refusal.values))
def test_what_cannot_meet_is_refused_in_one_line(
    refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    row = CROSSINGS.completed(refusal)
    encoder = SimpleNamespace(info=SimpleNamespace(name="encoder", modality=row["modality"]))
    task = cast(Any, SimpleNamespace(name="task", modality=row["modality"], target=target_of(row)))

    def checked() -> None:
        check_target([choice_of(row)], task, [point.noise for point in points_of(row)])
        check_match(cast(Any, encoder), task, views=int(row["views"]))

    with pytest.raises(SystemExit) as ended:
        cli.run(checked)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert refusal.says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
