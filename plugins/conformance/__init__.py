"""What a head promises, as small named checks; ``plugins.testing`` runs them under pytest.

::

    subject.py          the problem that a head is checked on, and what its answers must be
    declaration.py      the class and its hyper-parameters, before anything is learnt
    answers.py          what a fitted head returns
    data.py             training data of unusual kinds
    reproducibility.py  seeds, global state, saved state
    validation.py       validation data

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

import nml.conformance
from nml.conformance import CheckFailed, Outcome
from plugins.conformance import answers, data, declaration, reproducibility, validation
from plugins.conformance.subject import Subject, separable

__all__ = ["CHECKS", "CheckFailed", "Outcome", "Subject", "reason_to_skip", "run_checks", "separable"]

Check = Callable[[Subject], None]

CHECKS: dict[str, Check] = {
    function.__name__: function
    for function in (
        declaration.has_every_method,
        declaration.init_does_no_work,
        declaration.hyper_parameters_are_plain,
        declaration.refuses_unknown_hyper_parameter,
        declaration.hyper_parameters_unchanged,
        answers.beats_chance,
        answers.logits_shape,
        answers.transform_shape,
        answers.batch_of_one,
        answers.rows_are_independent,
        answers.refuses_to_predict_unfitted,
        answers.device_moves,
        data.refuses_labels_of_another_length,
        data.fewer_samples_than_features,
        data.missing_classes,
        data.imbalanced_classes,
        data.half_precision_features,
        data.unit_of_features,
        data.strided_features,
        data.constant_features,
        reproducibility.inputs_unchanged,
        reproducibility.refit_gives_the_same,
        reproducibility.leaves_global_randomness_alone,
        reproducibility.state_round_trip,
        reproducibility.state_is_a_copy,
        validation.validation_is_not_peeked_at,
        validation.validation_only_chooses,
    )
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
    return nml.conformance.outcomes(checks, subject, expected_failures=expected_failures)


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
    chooses = bool(getattr(subject.head, "uses_validation", False))
    if name == "validation_is_not_peeked_at" and chooses:
        return "the class says uses_validation = True"
    if name == "validation_only_chooses" and not chooses:
        return "the class does not say uses_validation = True"
    return None
