"""Scores of test data whose classes are not the task's, and of spectra of nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes.scoring import evaluate, score, spectrum
from probes.tasks.samplesets import Texts
from probes.tasks.task import Evaluation, Perturbations


def samples(labels: list[int]) -> Texts:
    names = [str(number) for number in range(len(labels))]
    return Texts(names, np.array(labels), names)


def test_a_group_of_classes_wins_by_its_largest_member_and_others_cannot() -> None:
    logits = np.array([[1, 2, 3, 0, 9], [5, 2, 3, 4, 9], [0, 1, 0, 4, 9], [0, 0, 1, 6, 9]], np.float32)
    test = Evaluation("x", "ood", samples([1, 0, 0, 1]), groups=((0, 1), (2, 3)))
    # Groups' logits: (2, 3), (5, 4), (1, 4), (0, 6).
    found = evaluate(logits, test, "accuracy")
    assert (found.accuracy, found.metric, found.metric_name) == (0.75, 0.75, "accuracy")
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_only_classes_that_can_occur_are_predicted_also_with_logits_below_zero() -> None:
    logits = -np.array([[1, 5, 4, 6], [1, 4, 5, 6], [1, 5, 6, 4]], np.float32)
    found = evaluate(logits, Evaluation("x", "ood", samples([2, 1, 1]), classes=(1, 2)), "accuracy")
    assert found.accuracy == 1.0
    assert evaluate(logits, Evaluation("x", "ood", samples([0, 0, 0])), "accuracy").accuracy == 1.0


def test_frames_count_by_anchors_and_as_whole_sets() -> None:
    labels = [0, 1, 1, 2, 0, 2]
    predicted = [0, 1, 2, 2, 0, 0]
    frames = Perturbations(
        "pm-2",
        ((0, 4), (1, 2), (3,), (5, 0)),
        (*(frozenset({label}) for label in labels[:5]), frozenset({1})),
    )
    test = Evaluation("x", "ood", samples(labels), perturbations=frames)
    found = evaluate(np.eye(3, dtype=np.float32)[predicted], test, "macro_f1")
    # Anchors 0, 1, 3 are right and 5 is not; of the sets, (0, 4) and (3,) are right throughout.
    assert (found.accuracy, found.metric, found.metric_name) == (0.75, 0.5, "pm-2")
    # Of the anchors alone: classes 0 (one hit, one predicted too many), 1 (right), 2 (one of two found).
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_predictions_that_do_not_vary_correlate_with_nothing() -> None:
    constant = np.tile(np.array([0, 1, 2], np.float32), (4, 1))
    assert score(constant, np.array([0, 1, 2, 0]), "pearson").metric == 0.0
    assert score(np.eye(3, dtype=np.float32), np.array([1, 1, 1]), "pearson").metric == 0.0
    # Only differences between logits count, however large they are.
    large = np.array([[1000, 0], [1000, 1000], [0, 1000]], np.float32)
    assert score(large, np.array([0, 1, 1]), "pearson").metric == pytest.approx(math.sqrt(3) / 2)


def test_a_spectrum_comes_with_its_entropy_and_ratio_and_nothing_has_neither() -> None:
    found = spectrum(np.diag([3.0, 1.0]), "raw")
    assert found.values == pytest.approx([3, 1])
    assert found.sve == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found.lsvr == pytest.approx(-math.log(0.75))
    # Centred by rows, these have one direction; by columns as well, another number.
    assert spectrum(np.diag([3.0, 1.0]), "row-centred").values == pytest.approx([1, 0], abs=1e-7)
    nothing = spectrum(np.zeros((3, 2)), "raw")
    assert nothing.values.tolist() == [0, 0]
    assert math.isnan(nothing.sve)
    assert math.isnan(nothing.lsvr)
