"""Checks of the class and its hyper-parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from nml.conformance import CheckFailed, promise, untouched_randomness
from plugins.conformance.subject import Subject
from plugins.head import hyper_parameters


def has_every_method(subject: Subject) -> None:
    """Every method is there and takes the contract's keywords; every hyper-parameter has a default."""
    promise(subject.fault is None, f"the class is no head: {subject.fault}")


def init_does_no_work(subject: Subject) -> None:
    """``__init__`` keeps its arguments under their names, unchanged, and draws no random number."""
    with untouched_randomness("__init__"):
        head = subject.head()
    learnt = [name for name, value in vars(head).items() if isinstance(value, (Tensor, torch.nn.Module))]
    promise(not learnt, f"__init__ built {', '.join(learnt)}; nothing is known of the data before fit")
    other = subject.head(**hyper_parameters(head))
    promise(
        hyper_parameters(head) == hyper_parameters(other),
        "hyper-parameters do not survive __init__ unchanged",
    )


def hyper_parameters_are_plain(subject: Subject) -> None:
    """Hyper-parameters can be written into a result as JSON."""
    found = hyper_parameters(subject.head())
    try:
        json.dumps(found)
    except TypeError as error:
        raise CheckFailed(f"hyper-parameters {found} are no JSON: {error}") from error


def refuses_unknown_hyper_parameter(subject: Subject) -> None:
    """A misspelt hyper-parameter is an error, not ignored."""
    try:
        subject.head(no_such_hyper_parameter=1)
    except TypeError:
        return
    raise CheckFailed("__init__ accepted no_such_hyper_parameter=1")


def hyper_parameters_unchanged(subject: Subject) -> None:
    """Fit keeps hyper-parameters as they were given; what it finds out is state."""
    head = subject.head()
    before = hyper_parameters(head)
    subject.fit(head=head)
    promise(hyper_parameters(head) == before, f"fit changed {before} to {hyper_parameters(head)}")


def settings_to_try(subject: Subject) -> None:
    """``sweep()`` lists changes that the class takes and ``tries`` is a number, where it has them."""
    head = subject.head()
    tries = getattr(head, "tries", 1)
    promise(isinstance(tries, int) and tries > 0, f"tries is {tries!r}; expected a whole number from 1")
    changes = head.sweep() if hasattr(head, "sweep") else []
    promise(
        isinstance(changes, list) and all(isinstance(change, Mapping) for change in changes),
        f"sweep() returned {changes!r}; expected a list of changes of hyper-parameters, each a dict",
    )
    own = hyper_parameters(head)
    for change in changes:
        promise(
            hyper_parameters(subject.head(**{**own, **change})) != own,
            f"sweep() names {dict(change)}, the head's own settings, which are tried anyway",
        )
