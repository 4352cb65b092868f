"""Splits, label noise and metrics once more, sample by sample, from what their documentation says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from probes.tasks.task import Metric


def in_turn(keys: Sequence[str], salt: str) -> list[int]:
    """Return the samples by the salted hash of their keys, the smallest first."""
    return sorted(
        range(len(keys)),
        key=lambda row: hashlib.blake2b(keys[row].encode(), digest_size=16, key=salt.encode()).digest(),
    )


def groups(labels: np.ndarray) -> list[int]:
    """Return what samples are divided by: their class, the rarest of several, and all alike for numbers."""
    if labels.ndim == 1:
        return labels.tolist() if labels.dtype.kind == "i" else [0] * len(labels)
    counts = labels.sum(axis=0).tolist()
    return [
        min((counts[place], place) for place in np.flatnonzero(row))[1] if row.any() else len(counts)
        for row in labels
    ]


def carved(keys: Sequence[str], labels: Sequence[int]) -> list[int]:
    """Return what is set aside: a tenth of a class, but one where there are two or more, and never all."""
    found: list[int] = []
    for label in sorted(set(labels)):
        members = [row for row in in_turn(keys, "nml-validation/1") if labels[row] == label]
        found += members[: min(max(round(len(members) / 10), 1), len(members) - 1)]
    return sorted(found)


def fraction_of(keys: Sequence[str], labels: Sequence[int], fraction: str, seed: int) -> list[int]:
    """Return a fraction of every class, at least one sample."""
    found: list[int] = []
    for label in sorted(set(labels)):
        members = [row for row in in_turn(keys, f"nml-fraction/1 {seed}") if labels[row] == label]
        found += members[: max(1, round(Fraction(fraction) * len(members)))]
    return sorted(found)


def flipped(
    keys: Sequence[str],
    labels: Sequence[int],
    ratio: str,
    classes: int,
    seed: int,
    parts: Sequence[Sequence[int]],
) -> list[int]:
    """Return labels of which that ratio of each part is wrong."""
    count = len(keys)
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, classes - 1, size=count).tolist()
    order = in_turn(keys, f"nml-downstream/1 {seed}")
    wrong = {}
    for row, draw in zip(order, draws, strict=True):
        others = [label for label in range(classes) if label != labels[row]]
        wrong[row] = others[draw]
    found = list(labels)
    for part in parts:
        for row in [row for row in order if row in part][: round(Fraction(ratio) * len(part))]:
            found[row] = wrong[row]
    return found


def f1(predicted: list[int], labels: list[int], of: int) -> float:
    pairs = list(zip(predicted, labels, strict=True))
    hits = sum(p == of and y == of for p, y in pairs)
    misses = sum((p == of) != (y == of) for p, y in pairs)
    return 2 * hits / (2 * hits + misses) if hits + misses else 0.0


def correlation(first: list[float], second: list[float]) -> float:
    a, b = (np.array(values) - sum(values) / len(values) for values in (first, second))
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def matthews(predicted: list[int], labels: list[int], classes: int) -> float:
    """Correlate the indicators of prediction and label, over all classes (Gorodkin 2004)."""
    p, y = np.eye(classes)[predicted], np.eye(classes)[labels]
    p, y = p - p.mean(axis=0), y - y.mean(axis=0)
    spread = math.sqrt((p * p).sum() * (y * y).sum())
    return float((p * y).sum() / spread) if spread else 0.0


def ranks(values: list[float]) -> list[float]:
    """Return the place of each value, the mean place of equal ones."""
    return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def average_precision(scores: list[float], applies: list[bool]) -> float:
    """Return the mean, over the samples that have a class, of the precision among those scored no lower."""
    found = []
    for score, there in zip(scores, applies, strict=True):
        named = [other for value, other in zip(scores, applies, strict=True) if value >= score]
        found += [sum(named) / len(named)] if there else []
    return sum(found) / len(found)


def metric_of(metric: Metric, logits: np.ndarray, labels: list[Any]) -> float:
    if metric == "spearman":
        return correlation(ranks(logits[:, 0].tolist()), ranks(labels))
    if metric == "map":
        columns = list(zip(logits.T.tolist(), zip(*labels, strict=True), strict=True))
        known = [average_precision(scores, list(applies)) for scores, applies in columns if any(applies)]
        return sum(known) / len(known)
    predicted = [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]
    if metric == "accuracy":
        return sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)
    if metric == "macro_f1":
        # Every class that occurs counts alike, also one that is only predicted.
        there = set(predicted) | set(labels)
        return sum(f1(predicted, labels, label) for label in there) / len(there)
    if metric == "mean_per_class":
        there = set(labels)
        recalls = [
            sum(p == y == label for p, y in zip(predicted, labels, strict=True)) / labels.count(label)
            for label in there
        ]
        return sum(recalls) / len(there)
    if metric == "f1":
        return f1(predicted, labels, 1)
    if metric == "matthews":
        return matthews(predicted, labels, logits.shape[1])
    expected = []
    for row in logits.tolist():
        weights = [math.exp(value - max(row)) for value in row]
        expected.append(sum(step * weight for step, weight in enumerate(weights)) / sum(weights))
    return correlation(expected, labels)
