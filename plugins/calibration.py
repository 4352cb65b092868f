"""From class scores to probabilities: softmax(logits / T), and how far they are from what happens.

One temperature T, fitted on validation data, leaves the order of the classes as it is (C. Guo et al., On
Calibration of Modern Neural Networks, ICML 2017).

Where a sample may have any number of classes, each of the N x K decisions is one of two classes, with logits
0 and
z: softmax is sigmoid(z / T) then, and a calibration is that of these decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
"""Any floating dtype, of any shape."""
Labels = npt.NDArray[np.int64]
"""Classes, int64 [N]."""

# Temperatures that are looked at.
COLDEST, HOTTEST = 1e-3, 1e4
DEVIATION = 0.5
"""Deviation from 0 that is expected of the logarithm of a temperature."""
BINS = 15
"""Bins of confidence of the calibration error."""
AT_ONCE = 1 << 24
"""Scores in float64 at once."""


class Calibration(NamedTuple):
    """How good probabilities are.

    Attributes:
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error: the mean distance of confidence and accuracy over ``BINS`` bins of
            equal width, 0 to 1.
    """

    nll: float
    ece: float


def decisions(logits: Array, labels: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float32], Labels]:
    """Return logits [N, K] and labels bool [N, K] as those of N x K decisions: [N K, 2] and int64 [N K]."""
    scores = np.zeros((logits.size, 2), np.float32)
    scores[:, 1] = logits.ravel()
    return scores, labels.ravel().astype(np.int64)


def best_thresholds(logits: Array, labels: npt.NDArray[np.bool_], temperature: float) -> list[float]:
    """Return for each class the probability from which on it is best named, by the F1 of these samples.

    A threshold lies halfway between the probabilities of two samples. A class that no sample has, or all,
    gets 0.5.

    Args:
        logits: [N, K].
        labels: Which classes apply, bool [N, K].
        temperature: What logits are divided by before the sigmoid.
    """
    from scipy.special import expit

    found: list[float] = []
    for scores, applies in zip(logits.T.astype(np.float64), labels.T, strict=True):
        order = np.argsort(-scores, kind="stable")
        scores, right = scores[order], np.cumsum(applies[order])
        named = np.arange(1, len(scores) + 1)
        f1 = 2 * right / (named + right[-1])
        # Samples of one score are named together or not at all.
        f1[:-1][scores[:-1] == scores[1:]] = -1
        last = int(f1.argmax())
        if right[-1] in (0, len(scores)):
            found.append(0.5)
            continue
        following = scores[last + 1] if last + 1 < len(scores) else scores[last]
        found.append(float(expit((scores[last] + following) / 2 / temperature)))
    return found


def fit_temperature(logits: Array, labels: Labels) -> float:
    """Return the temperature under which logits [N, K] say best what labels int64 [N] are.

    What is minimised is the sum of the negative log-likelihoods and (log T / 0.5)^2 / 2, as if T were drawn
    log-normally around 1: few samples that are all right do not make a head certain.
    """
    from scipy.optimize import minimize_scalar

    count, classes = logits.shape
    if count == 0 or classes < 2:
        return 1.0
    of_labels = np.take_along_axis(logits, labels[:, None], axis=1).mean(dtype=np.float64)

    def loss(log_sharpness: float) -> float:
        sharpness = np.exp(log_sharpness)
        total = sum(float(_log_sums(sharpness * part).sum()) for part in _parts(logits))
        expected = (log_sharpness / DEVIATION) ** 2 / 2
        return float((total + expected) / count - sharpness * of_labels)

    # The likelihood is log-concave in 1 / T, so it has one peak along log T as well.
    bounds = (-np.log(HOTTEST), -np.log(COLDEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(-found.x))


def probabilities(logits: Array, temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Return softmax(logits / temperature), float32 [N, K]."""
    found = np.empty(logits.shape, np.float32)
    row = 0
    for part in _parts(logits):
        scaled = part / temperature
        found[row : row + len(part)] = np.exp(scaled - _log_sums(scaled)[:, None])
        row += len(part)
    return found


def shares(logits: Array, temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Return sigmoid(logits / temperature), float32 [N, K]: of each class whether it applies."""
    from scipy.special import expit

    found: npt.NDArray[np.float32] = expit(logits.astype(np.float64) / temperature).astype(np.float32)
    return found


def calibration(logits: Array, labels: Labels, temperature: float = 1.0) -> Calibration:
    """Return how far softmax(logits / temperature) of logits [N, K] is from labels int64 [N]."""
    log_likelihood, confidence, right = np.empty(len(labels)), np.empty(len(labels)), np.empty(len(labels))
    row = 0
    for part in _parts(logits):
        rows = slice(row, row + len(part))
        scaled = part / temperature
        sums = _log_sums(scaled)
        log_likelihood[rows] = np.take_along_axis(scaled, labels[rows, None], axis=1)[:, 0] - sums
        confidence[rows] = np.exp(scaled.max(axis=1) - sums)
        right[rows] = scaled.argmax(axis=1) == labels[rows]
        row += len(part)
    # A bin holds its upper end: certainty is in the last one.
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.abs(np.bincount(bins, weights=confidence - right, minlength=BINS))
    return Calibration(float(-log_likelihood.mean()), float(gaps.sum() / len(labels)))


def _parts(logits: Array) -> Iterator[npt.NDArray[np.float64]]:
    rows = max(1, AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield logits[start : start + rows].astype(np.float64)


def _log_sums(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    highest = scores.max(axis=1)
    sums: npt.NDArray[np.float64] = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
    return sums
