"""What a head promises, as small named checks; ``plugins.testing`` runs them under pytest.

::

    subject.py          the problem that a head is checked on, and what its answers must be
    declaration.py      the class and its hyper-parameters, before anything is learnt
    answers.py          what a fitted head returns
    data.py             training data of unusual kinds, and validation data
    reproducibility.py  seeds, global state, saved state
    targets.py          labels that are numbers, or several classes a sample

A check makes its own heads from the class's defaults, on a small problem that any classifier solves.
One that fails says what was promised and what was seen. A head with one fault fails the one check
that names it, as far as the fault lets the others run.
"""

from __future__ import annotations

import functools
import inspect
import unittest
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from nml.conformance import CheckFailed, Outcome, checks_of, outcomes
from nml.labels import Target
from plugins.conformance import answers, data, declaration, reproducibility, targets
from plugins.conformance.subject import Subject, separable
from plugins.gradient_head import GradientHead
from plugins.head import targets_of

__all__ = ["CHECKS", "CheckFailed", "Outcome", "Subject", "reason_to_skip", "run_checks", "separable"]

Check = Callable[[Subject], None]

CHECKS: dict[str, Check] = checks_of(
    *(module.__name__ for module in (declaration, answers, data, reproducibility, targets))
)


_OF_TARGET: dict[str, Target] = {
    "predicts_numbers": "regression",
    "unit_of_numbers": "regression",
    "names_several_classes": "multilabel",
}


def run_checks(
    head: type[Any], *, device: str = "cpu", expected_failures: Mapping[str, str] | None = None
) -> Iterator[Outcome]:
    """Return the outcome of every check, in order, as it ends.

    Args:
        head: The class to check.
        device: Where it computes.
        expected_failures: Names of checks that may fail, each with the reason.
    """
    subject = Subject(head, device)
    checks = {name: functools.partial(_unless_skipped, name, function) for name, function in CHECKS.items()}
    return outcomes(checks, subject, expected_failures=expected_failures)


def _unless_skipped(name: str, function: Check, subject: Subject) -> None:
    reason = reason_to_skip(name, subject)
    if reason:
        raise unittest.SkipTest(reason)
    function(subject)


def reason_to_skip(name: str, subject: Subject) -> str | None:
    """Return why a check has nothing to look at in this class, or None."""
    # One message that says what is missing is worth more than two dozen that trip over it.
    if name != "has_every_method" and subject.fault:
        return "the class is no head"
    if name == "device_moves" and torch.device(subject.device).type == "cpu":
        return "needs a second device: --device cuda:0"
    if name == "unit_of_features" and "rescale" not in inspect.signature(subject.head).parameters:
        return "the class has no rescale"
    if name == "trained_together_as_alone" and not _in_one_pass(subject.head):
        return "copies of it are fitted one after another"
    target = _OF_TARGET.get(name, "classification")
    if target not in targets_of(subject.head):
        return f"the class does not say that it takes {target}"
    asks = getattr(subject.head, "uses_class_embeddings", False)
    if name == "refuses_to_do_without_class_embeddings" and not asks:
        return "the class does not say uses_class_embeddings = True"
    chooses = bool(getattr(subject.head, "uses_validation", False))
    if name == "validation_is_not_peeked_at" and chooses:
        return "the class says uses_validation = True"
    if name == "validation_only_chooses" and not chooses:
        return "the class does not say uses_validation = True"
    return None


def _in_one_pass(head: type[Any]) -> bool:
    trained = issubclass(head, GradientHead) and head.fit is GradientHead.fit and head.stackable
    return trained and "lr" in inspect.signature(head).parameters
