"""Fitting the heads of one (encoder, task): all candidates, fractions and seeds, then selection.

Nothing in this file sees a test feature or a test label.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from plugins.calibration import best_thresholds, decisions, fit_temperature
from plugins.head import Head
from probes.answers import HeadFault, asked, predict
from probes.heads import HeadChoice
from probes.samples import Labels
from probes.scoring import score
from probes.study import as_json
from probes.tasks.task import Metric
from probes.training_data import Point, TrainingData, noisy_labels, noisy_validation

if TYPE_CHECKING:
    import torch


class Fitted(NamedTuple):
    """The chosen head of one point.

    Attributes:
        point: What was asked for.
        head: The fitted head.
        hyper_parameters: JSON of its hyper-parameters.
        selection: JSON of the validation scores and the choice.
        n_train: Samples it was trained on, views counted once.
        n_validation: Samples it was chosen on.
        seconds: Time to fit it, its share of a common pass.
        temperature: What makes probabilities of its logits, fitted on the validation data; None of numbers.
        thresholds: The probability from which on each of several classes is named, chosen on the validation
            data; empty of other targets.
    """

    point: Point
    head: Head
    hyper_parameters: str
    selection: str
    n_train: int
    n_validation: int
    seconds: float
    temperature: float | None
    thresholds: tuple[float, ...] = ()


class Failed(NamedTuple):
    """A point that no candidate gave a head for.

    Attributes:
        point: What was asked for.
        reason: What is wrong with the head, in one line.
    """

    point: Point
    reason: str


class _Labelling(NamedTuple):
    """Labels as a point has them.

    Attributes:
        labels: Of the training samples, and once more for every view.
        validation: Features [M, D] and labels that selection sees.
    """

    labels: torch.Tensor
    validation: tuple[npt.NDArray[np.float32], Labels]


class _Fit(NamedTuple):
    point: Point
    candidate: int
    head: Head
    rows: npt.NDArray[np.int64]
    labelling: _Labelling


def check_device(device: str) -> None:
    """Refuse a device that there is not.

    Raises:
        UserError: Names it, and why it cannot be used.
    """
    import torch

    try:
        torch.empty(1, device=device)
    # What is raised depends on the back-end, and on whether this build of PyTorch has it.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}", possible="auto, cpu, cuda, cuda:1, ...") from error


def fit_points(
    choice: HeadChoice, data: TrainingData, points: Sequence[Point], metric: Metric, device: str
) -> list[Fitted | Failed]:
    """Fit a head for every point and candidate, and choose a candidate for each point on validation data.

    All are trained in one batched pass where the head is trained by gradient descent.
    A candidate that raises, diverges or gives back something malformed is not chosen, and its validation
    score is None.

    Args:
        choice: The head and its candidates.
        data: Training and validation data.
        points: Fractions, seeds and downstream noise.
        metric: What selection maximises.
        device: Where to compute.
    """
    fits = [
        _Fit(point, candidate, choice.build(candidate), data.rows(point.fraction, point.seed), labelling)
        for point, labelling in zip(points, _labellings(data, points), strict=True)
        for candidate in range(len(choice.candidates))
    ]
    seconds = _fit_all(fits, data, device)
    found = [
        _validated(fit, spent, metric, data.num_classes) for fit, spent in zip(fits, seconds, strict=True)
    ]
    chosen: list[Fitted | Failed] = []
    for point in points:
        mine = [number for number, fit in enumerate(fits) if fit.point == point]
        scores = [score if isinstance(score := found[number], float) else None for number in mine]
        able = [place for place, value in enumerate(scores) if value is not None]
        if not able:
            chosen.append(Failed(point, str(found[mine[0]])))
            continue
        best = max(able, key=lambda place: (cast(float, scores[place]), -place))
        fit = fits[mine[best]]
        try:
            logits = predict(fit.head, fit.labelling.validation[0], data.num_classes)
            outcome = asked("outcome", functools.partial(_outcome, fit.head))
        except HeadFault as fault:
            chosen.append(Failed(point, str(fault)))
            continue
        chosen.append(
            Fitted(
                point=point,
                head=fit.head,
                hyper_parameters=as_json(choice.candidates[fit.candidate]),
                selection=as_json(
                    {
                        "chosen": best,
                        "metric": metric,
                        "validation": scores,
                        "tries": choice.tries,
                        **outcome,
                    }
                ),
                n_train=len(fit.rows),
                n_validation=len(fit.labelling.validation[1]),
                seconds=cast(float, seconds[mine[best]]),
                **calibrate(logits, fit.labelling.validation[1]),
            )
        )
    return chosen


def _validated(fit: _Fit, spent: float | HeadFault, metric: Metric, num_classes: int) -> float | HeadFault:
    """Return the validation score of a fit, or what is wrong with its head."""
    if isinstance(spent, HeadFault):
        return spent
    try:
        logits = predict(fit.head, fit.labelling.validation[0], num_classes)
    except HeadFault as fault:
        return fault
    return score(logits, fit.labelling.validation[1], metric).metric


def calibrate(logits: npt.NDArray[np.float32], labels: Labels) -> dict[str, Any]:
    """Return the temperature and the thresholds of a head, by its scores of the validation data."""
    if labels.dtype == bool:
        temperature = fit_temperature(*decisions(logits, labels))
        return {
            "temperature": temperature,
            "thresholds": tuple(best_thresholds(logits, labels, temperature)),
        }
    return {"temperature": None if labels.dtype.kind == "f" else fit_temperature(logits, labels)}


def _of_views(labels: Labels, views: int) -> torch.Tensor:
    """Return labels once for every view."""
    import torch

    return torch.from_numpy(np.concatenate([labels] * views))


def _outcome(head: Head) -> dict[str, Any]:
    outcome = getattr(head, "outcome", None)
    return {"outcome": dict(outcome)} if outcome else {}


def _labellings(data: TrainingData, points: Sequence[Point]) -> list[_Labelling]:
    """Return the labels of each point; all points without downstream noise share theirs."""
    views = len(data.features) // len(data.keys)
    clean: _Labelling | None = None
    found: list[_Labelling] = []
    for point in points:
        # With noise, exactly that share of every subset is flipped, so each point has labels of its own.
        if clean is None or point.noise:
            labels = noisy_labels(data, point)
            validation = noisy_validation(data, labels, point)
            labelling = _Labelling(_of_views(labels, views), validation)
            clean = clean if point.noise else labelling
            found.append(labelling)
        else:
            found.append(clean)
    return found


def _fit_all(fits: Sequence[_Fit], data: TrainingData, device: str) -> list[float | HeadFault]:
    """Fit every head in place and return the seconds of each, or what went wrong."""
    import torch

    from plugins.gradient_head import GradientHead
    from plugins.trainer import Copy, fit_many

    views = len(data.features) // len(data.keys)
    features, clean = torch.from_numpy(data.features), _of_views(data.labels, views)
    rows = [
        torch.from_numpy(np.concatenate([fit.rows + view * len(data.keys) for view in range(views)]))
        for fit in fits
    ]
    kind = type(fits[0].head)
    begun = time.perf_counter()
    if issubclass(kind, GradientHead) and kind.fit is GradientHead.fit:
        copies = [
            Copy(
                cast(GradientHead, fit.head),
                seed=fit.point.seed,
                rows=part,
                labels=fit.labelling.labels if fit.point.noise else None,
            )
            for fit, part in zip(fits, rows, strict=True)
        ]
        try:
            asked(
                "fit",
                lambda: fit_many(copies, features, clean, num_classes=data.num_classes, device=device),
            )
        except HeadFault as fault:
            return [fault] * len(fits)
        # A copy costs in proportion to the samples it sees.
        total = sum(len(part) for part in rows)
        return [(time.perf_counter() - begun) * len(part) / total for part in rows]
    asked_for = {}
    if getattr(kind, "uses_class_embeddings", False) and data.class_embeddings is not None:
        asked_for["class_embeddings"] = torch.from_numpy(data.class_embeddings)
    seconds: list[float | HeadFault] = []
    for fit, part in zip(fits, rows, strict=True):
        begun = time.perf_counter()
        held = fit.labelling.validation
        learn = functools.partial(
            fit.head.fit,
            features[part],
            fit.labelling.labels[part],
            validation=(torch.from_numpy(held[0]), torch.from_numpy(held[1])),
            num_classes=data.num_classes,
            seed=fit.point.seed,
            device=device,
            **asked_for,
        )
        try:
            asked("fit", learn)
        except HeadFault as fault:
            seconds.append(fault)
        else:
            seconds.append(time.perf_counter() - begun)
    return seconds
