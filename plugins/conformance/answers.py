"""Checks of what a fitted head returns."""

from __future__ import annotations

import torch
from torch import Tensor

from nml.conformance import CheckFailed, promise
from plugins.conformance.subject import (
    CLASSES,
    TEST,
    TOLERANCE,
    Subject,
    promise_finite_rows,
    promise_scores,
    same,
)
from plugins.head import Labelled


def beats_chance(subject: Subject) -> None:
    """Separable classes are told apart with at least 80 % accuracy on unseen samples."""
    accuracy = float((subject.classes(subject.fitted) == subject.test.labels).float().mean())
    promise(accuracy >= 0.8, f"accuracy {accuracy:.2f} on separable classes; expected 0.80 or more")


def logits_shape(subject: Subject) -> None:
    """``predict_logits`` gives float32 [N, K] on the CPU, finite, without a gradient."""
    scores = subject.logits(subject.fitted)
    promise_scores(scores, TEST, CLASSES)
    _plain("predict_logits", scores)


def transform_shape(subject: Subject) -> None:
    """``transform`` gives float32 [N, H] on the CPU, finite, without a gradient."""
    result = subject.fitted.transform(subject.test.features.clone())
    promise_finite_rows("transform", result, TEST)
    promise(result.ndim == 2, f"transform returned {list(result.shape)}; expected [{TEST}, H]")
    _plain("transform", result)


def batch_of_one(subject: Subject) -> None:
    """One sample is a batch."""
    sample = subject.test.features[:1].clone()
    promise_scores(subject.fitted.predict_logits(sample), 1, CLASSES)
    promise_finite_rows("transform", subject.fitted.transform(sample), 1)


def rows_are_independent(subject: Subject) -> None:
    """A sample's scores do not depend on the batch it comes in."""
    whole = subject.logits(subject.fitted)
    for start in (0, TEST - 2):
        rows = slice(start, start + 2)
        promise(
            same(whole[rows], subject.fitted.predict_logits(subject.test.features[rows].clone()), TOLERANCE),
            f"samples {start} and {start + 1} score differently apart from the other {TEST - 2}",
        )


def refuses_to_predict_unfitted(subject: Subject) -> None:
    """Predicting before fit is an error, not an answer."""
    try:
        subject.logits(subject.head())
    except Exception:
        return
    raise CheckFailed("predict_logits before fit gave an answer")


def device_moves(subject: Subject) -> None:
    """Features come on the head's device or on the CPU; what was learnt on one predicts on the other."""
    here = subject.test.features.to(subject.device)
    expected = subject.logits(subject.fitted)
    promise(
        same(expected, subject.fitted.predict_logits(here), TOLERANCE),
        f"other scores for features on {here.device}",
    )
    head = subject.fit(Labelled(*(part.to(subject.device) for part in subject.train)))
    promise(
        same(expected, subject.logits(head), TOLERANCE),
        f"training on features that are on {here.device} already gives other scores",
    )
    state = head.state_dict()
    moved = [name for name, value in state.items() if value.device.type != "cpu"]
    promise(not moved, f"state_dict left {', '.join(moved)} on {here.device}")
    restored = subject.fresh()
    restored.load_state_dict(state)
    promise(
        same(expected, subject.logits(restored), TOLERANCE), "other scores after the state moved to the CPU"
    )


def _plain(method: str, result: Tensor) -> None:
    promise(result.dtype == torch.float32, f"{method} returned {result.dtype}; expected torch.float32")
    promise(result.device.type == "cpu", f"{method} returned a tensor on {result.device}; expected the CPU")
    promise(not result.requires_grad, f"{method} returned a tensor that still requires a gradient")
