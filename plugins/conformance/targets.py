"""Checks of heads that say they take other labels than classes: numbers, or several classes a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nml.conformance import promise
from plugins.conformance.subject import TEST, TOLERANCE, Subject, promise_scores, same
from plugins.head import Labelled

# Share of the variance, and of the decisions, that must come out right.
EXPLAINED, RIGHT = 0.8, 0.9
UNIT, OFFSET = 1_000.0, 5_000.0


def predicts_numbers(subject: Subject) -> None:
    """A head of numbers explains 80 % of the variance on unseen samples, once restored as well."""
    expected = _numbers(subject.test.labels)
    # A narrow head may need the steps that kit fits leave out.
    for least in (None, subject.head()):
        head = _fit(subject, _numbers(subject.train.labels), head=least)
        found = subject.logits(head)
        promise_scores(found, TEST, 1)
        error = float((found[:, 0] - expected).square().mean() / expected.var(correction=0))
        if error <= 1 - EXPLAINED:
            break
    promise(
        error <= 1 - EXPLAINED, f"{error:.0%} of the variance of the numbers is left; expected 20 % at most"
    )
    restored = subject.fresh()
    restored.load_state_dict(head.state_dict())
    promise(same(found, subject.logits(restored), TOLERANCE), "other numbers after load_state_dict")


def unit_of_numbers(subject: Subject) -> None:
    """Numbers that are 1,000 times larger, and 5,000 more, are predicted so."""
    plain = subject.logits(_fit(subject, _numbers(subject.train.labels)))
    larger = subject.logits(_fit(subject, UNIT * _numbers(subject.train.labels) + OFFSET))
    promise_scores(larger, TEST, 1)
    off = float(((larger - OFFSET) / UNIT - plain).abs().max())
    promise(
        off <= 0.05, f"of numbers {UNIT:,.0f} times larger, one comes out {off:.2g} times {UNIT:,.0f} off"
    )


def names_several_classes(subject: Subject) -> None:
    """A head of several classes a sample is right in 90 % of the decisions on unseen samples."""
    expected = _several(subject.test.labels)
    found = subject.logits(_fit(subject, _several(subject.train.labels)))
    promise_scores(found, TEST, expected.shape[1])
    right = float(((found > 0) == expected).float().mean())
    promise(right >= RIGHT, f"{right:.0%} of the decisions are right; expected {RIGHT:.0%} or more")


def _fit(subject: Subject, labels: Tensor, head: Any = None) -> Any:
    outputs = labels.shape[1] if labels.ndim > 1 else 1
    return subject.fit(Labelled(subject.train.features, labels), head=head, num_classes=outputs)


def _numbers(classes: Tensor) -> Tensor:
    return torch.tensor([1.0, -0.5, 2.0])[classes]


def _several(classes: Tensor) -> Tensor:
    """Return which of four classes apply: of two, of one, and of none at all samples of a cluster."""
    return torch.tensor([[True, True, False, False], [True, False, True, False], [False] * 4])[classes]
