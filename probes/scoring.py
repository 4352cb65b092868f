"""Metrics of a prediction and the spectrum of a feature matrix."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plugins.calibration import Calibration, calibration, decisions
from plugins.spectra import Convention, lsvr, singular_values, sve
from probes.samples import Labels
from probes.tasks.task import Evaluation, Metric

Logits = npt.NDArray[np.float32]


class Scores(NamedTuple):
    """Metrics of one prediction.

    Attributes:
        accuracy: 0 to 1; None where labels are no single classes.
        macro_f1: Mean F1 over the classes that occur, 0 to 1; None the same.
        metric: The task's own metric.
        metric_name: Its name, for example ``matthews``.
        average_precision: Of several classes a sample, that of each class; None where no sample has it.
        measures: Further measures by name.
    """

    accuracy: float | None
    macro_f1: float | None
    metric: float
    metric_name: str
    average_precision: tuple[float | None, ...] = ()
    measures: Mapping[str, float] = MappingProxyType({})


class Spectrum(NamedTuple):
    """Singular values and what the paper reads off them.

    Attributes:
        values: Descending, float64 [min(N, D)].
        sve: Singular value entropy.
        lsvr: Largest singular value ratio.
    """

    values: npt.NDArray[np.float64]
    sve: float
    lsvr: float


def spectrum(features: npt.NDArray[np.floating], convention: Convention) -> Spectrum:
    """Return the spectrum of features [N, D]; all zero features have no entropy and no ratio (NaN)."""
    values = singular_values(features, convention=convention)
    if not values.sum() > 0:
        return Spectrum(values, float("nan"), float("nan"))
    return Spectrum(values, sve(values), lsvr(values))


def evaluate(logits: Logits, evaluation: Evaluation, metric: Metric) -> Scores:
    """Score a head's logits [N, K] on test data, in the classes of that data.

    Of perturbed frames, accuracy and macro F1 are those of the anchors; the metric is the share of sets
    whose frames are all right (pm-k accuracy, arXiv 1906.02168).
    """
    if evaluation.samples.labels.dtype.kind in "bf":
        return score(logits, evaluation.samples.labels, metric)
    logits = _project(logits, evaluation)
    frames = evaluation.perturbations
    if frames is None:
        return score(logits, evaluation.samples.labels, metric)
    anchors = [positions[0] for positions in frames.sets]
    benign = score(logits[anchors], evaluation.samples.labels[anchors], "accuracy")
    right = np.array(
        [label in accepted for label, accepted in zip(logits.argmax(axis=1), frames.accepted, strict=True)]
    )
    return Scores(
        accuracy=float(right[anchors].mean()),
        macro_f1=benign.macro_f1,
        metric=float(np.mean([right[list(positions)].all() for positions in frames.sets])),
        metric_name=frames.metric,
    )


def calibrated(logits: Logits, evaluation: Evaluation, temperature: float | None) -> Calibration | None:
    """Return how good a head's probabilities are on test data; of perturbed frames, on the anchors.

    None where there are none: ``temperature`` is None.
    """
    if temperature is None:
        return None
    if evaluation.samples.labels.dtype == bool:
        return calibration(*decisions(logits, evaluation.samples.labels), temperature)
    logits, labels, frames = _project(logits, evaluation), evaluation.samples.labels, evaluation.perturbations
    if frames is not None:
        anchors = [positions[0] for positions in frames.sets]
        logits, labels = logits[anchors], labels[anchors]
    return calibration(logits, labels, temperature)


def _project(logits: Logits, evaluation: Evaluation) -> Logits:
    """Return logits in which only classes of the test data can win."""
    if evaluation.groups is not None:
        members = [logits[:, group].max(axis=1) for group in evaluation.groups]
        return np.stack(members, axis=1)
    if evaluation.classes is None:
        return logits
    masked = np.full_like(logits, -np.inf)
    masked[:, evaluation.classes] = logits[:, evaluation.classes]
    return masked


def score(logits: Logits, labels: Labels, metric: Metric) -> Scores:
    """Score logits [N, K], or numbers [N, 1], against labels of any target."""
    if labels.dtype == bool:
        return _score_several(logits, labels, metric)
    if labels.dtype.kind == "f":
        return _score_numbers(logits[:, 0].astype(np.float64), labels, metric)
    from sklearn.metrics import f1_score

    predicted = logits.argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    macro_f1 = float(f1_score(labels, predicted, average="macro", zero_division=0))
    own = {"accuracy": accuracy, "macro_f1": macro_f1}
    value = own[metric] if metric in own else _own(metric, logits, predicted, labels)
    return Scores(accuracy, macro_f1, value, metric)


def _score_several(logits: Logits, labels: npt.NDArray[np.bool_], metric: Metric) -> Scores:
    """Score logits against the classes of each sample, bool [N, K].

    The metric is the mean of the average precisions (the sum of (R_n - R_(n-1)) P_n, without interpolation)
    of the classes that some sample has. Of the others it is not defined, and where no class has a sample the
    mean is 0.
    """
    from sklearn.metrics import average_precision_score

    found = [
        float(average_precision_score(applies, scores)) if applies.any() else None
        for applies, scores in zip(labels.T, logits.T, strict=True)
    ]
    known = [value for value in found if value is not None]
    return Scores(None, None, float(np.mean(known)) if known else 0.0, metric, tuple(found))


def _score_numbers(
    predicted: npt.NDArray[np.float64], labels: npt.NDArray[np.float64], metric: Metric
) -> Scores:
    """Score numbers; where all are the same on one side, neither correlation is defined, and both are 0."""
    from scipy.stats import rankdata

    measures = {
        "pearson": _correlation(predicted, labels),
        "spearman": _correlation(rankdata(predicted), rankdata(labels)),
        "rmse": float(np.sqrt(np.mean((predicted - labels) ** 2))),
    }
    return Scores(None, None, measures[metric], metric, measures=measures)


def _own(
    metric: Metric,
    logits: Logits,
    predicted: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> float:
    from sklearn.metrics import f1_score, matthews_corrcoef

    if metric == "mean_per_class":
        return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))
    if metric == "matthews":
        return float(matthews_corrcoef(labels, predicted))
    if metric == "f1":
        return float(f1_score(labels, predicted, zero_division=0))
    return _pearson(logits, labels)


def _pearson(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """Correlate the expected class with the label: classes that are steps of a scale (STS-B)."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = (shares / shares.sum(axis=1, keepdims=True)) @ np.arange(logits.shape[1])
    return _correlation(expected, labels)


def _correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
