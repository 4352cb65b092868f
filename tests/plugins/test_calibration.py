"""Probabilities by definition, row by row and bin by bin, and temperatures that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from plugins import calibration
from plugins.calibration import fit_temperature, probabilities


def drawn(count: int, classes: int, *, sharpness: float, seed: int = 0) -> tuple[npt.NDArray, npt.NDArray]:
    """Return logits, and labels drawn from softmax(sharpness * logits)."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(count, classes))
    shares = np.exp(sharpness * logits)
    shares /= shares.sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(classes, p=row) for row in shares])
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_the_temperature_of_what_labels_were_drawn_from_is_found(temperature: float) -> None:
    logits, labels = drawn(4000, 4, sharpness=1 / temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    best = calibration.calibration(logits, labels, found)
    for other in (0.9 * found, 1.1 * found):
        assert calibration.calibration(logits, labels, other).nll > best.nll
    assert best.ece < 0.03


def test_few_samples_that_are_all_right_do_not_make_a_head_certain() -> None:
    logits = 5 * np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    assert 0.9 < fit_temperature(logits, np.array([0, 1, 2, 0])) < 1


def test_a_head_that_knows_nothing_is_told_so_and_one_class_is_certain() -> None:
    logits, labels = drawn(500, 3, sharpness=0)
    temperature = fit_temperature(logits, labels)
    assert calibration.calibration(logits, labels, temperature).nll == pytest.approx(math.log(3), abs=0.03)
    assert fit_temperature(np.zeros((5, 1), np.float32), np.zeros(5, np.int64)) == 1
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1


@pytest.mark.parametrize("at_once", [1, 8, 1 << 24])
def test_likelihood_and_calibration_error_are_those_of_the_definition(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "AT_ONCE", at_once)
    logits, labels = drawn(60, 3, sharpness=0.5)
    temperature = 1.7
    likelihood = 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        weights = [math.exp(value / temperature) for value in row]
        shares = [weight / sum(weights) for weight in weights]
        likelihood -= math.log(shares[label]) / 60
        confidence = max(shares)
        number = next(n for n in range(15) if confidence <= (n + 1) / 15)
        bins.setdefault(number, []).append((confidence, shares.index(confidence) == label))
    error = sum(abs(sum(c for c, _ in found) - sum(r for _, r in found)) for found in bins.values()) / 60
    got = calibration.calibration(logits, labels, temperature)
    assert got.nll == pytest.approx(likelihood, abs=1e-6)
    assert got.ece == pytest.approx(error, abs=1e-6)
    assert probabilities(logits, temperature).sum(axis=1) == pytest.approx(1)


def test_masked_classes_have_no_probability_and_scores_of_any_size_are_finite() -> None:
    logits = np.array([[2e4, -np.inf, 1e4], [0.0, -np.inf, 0.0]])
    assert probabilities(logits).tolist() == [[1, 0, 0], [0.5, 0, 0.5]]
    assert calibration.calibration(logits, np.array([0, 2])).nll == pytest.approx(math.log(2) / 2)
