"""Checks of seeds, of what is left as it was, and of saved state."""

from __future__ import annotations

import json

import safetensors.torch
import torch

from nml.conformance import CheckFailed, promise, untouched_randomness
from nml.randomness import scrambled_randomness
from plugins.conformance.subject import CLASSES, TOLERANCE, Subject, same
from plugins.head import Labelled, hyper_parameters

# Batched products round otherwise, at every step of a fit.
TOGETHER = 1e-2


def inputs_unchanged(subject: Subject) -> None:
    """Features and labels are read, never written."""
    features, labels = (part.clone() for part in subject.train)
    held = Labelled(*(part.clone() for part in subject.test))
    head = subject.fresh()
    more = {"validation": held, **subject.asked(features)}
    head.fit(features, labels, num_classes=CLASSES, seed=0, device=subject.device, **more)
    head.transform(features)
    head.predict_logits(features)
    promise(torch.equal(features, subject.train.features), "the features were changed")
    promise(torch.equal(labels, subject.train.labels), "the labels were changed")
    unchanged = all(map(torch.equal, held, subject.test))
    promise(unchanged, "the validation data were changed")


def refit_gives_the_same(subject: Subject) -> None:
    """Data and seed determine the result, whatever the head or the random generators did before."""
    expected = subject.logits(subject.fitted)
    with scrambled_randomness():
        again = subject.fit()
    promise(same(expected, subject.logits(again)), "a second head with seed 0 differs from the first")
    subject.fit(subject.test, head=again, seed=1)
    subject.fit(head=again)
    promise(same(expected, subject.logits(again)), "fitting the same head again remembers the fit before")


def leaves_global_randomness_alone(subject: Subject) -> None:
    """Fit and predict leave the global random generators of torch, numpy and Python as they were."""
    head = subject.fresh()
    with untouched_randomness("fit or predict_logits"):
        subject.logits(subject.fit(head=head))


def state_round_trip(subject: Subject) -> None:
    """A fresh head with the state, through safetensors, predicts and transforms the same."""
    state = safetensors.torch.load(safetensors.torch.save(subject.fitted.state_dict()))
    restored = subject.fresh()
    restored.load_state_dict(state)
    promise(
        same(subject.logits(subject.fitted), subject.logits(restored), TOLERANCE),
        "other scores after load_state_dict",
    )
    features = subject.test.features
    promise(
        same(subject.fitted.transform(features.clone()), restored.transform(features.clone()), TOLERANCE),
        "other transformed features after load_state_dict",
    )


def state_is_a_copy(subject: Subject) -> None:
    """What is done to a state does not reach the head that returned it, nor the one that took it."""
    head = subject.fit()
    before = subject.logits(head)
    for value in head.state_dict().values():
        value.zero_()
    promise(same(before, subject.logits(head)), "zeroing the returned state changed the head")
    restored, state = subject.fresh(), head.state_dict()
    restored.load_state_dict(state)
    before = subject.logits(restored)
    for value in state.values():
        value.zero_()
    promise(same(before, subject.logits(restored)), "zeroing the state changed the head that took it")


def outcome_is_plain(subject: Subject) -> None:
    """What ``outcome`` tells of a fit can be written into a result as JSON, where the class has it."""
    found = getattr(subject.fitted, "outcome", None)
    try:
        json.dumps(dict(found or {}))
    except TypeError as error:
        raise CheckFailed(f"outcome {found!r} is no dict of JSON-like values: {error}") from error


def trained_together_as_alone(subject: Subject) -> None:
    """Copies of two learning rates that train in one pass become what each becomes alone."""
    from plugins.trainer import Copy, fit_many

    rate = subject.fresh().schedule().lr
    plain = hyper_parameters(subject.fresh())
    # A few steps tell.
    plain |= {name: few for name, few in (("epochs", 5), ("least_steps", 0)) if name in plain}
    settings = [{**plain, "lr": rate}, {**plain, "lr": rate * 3}]
    heads = [subject.head(**setting) for setting in settings]
    copies = [Copy(head, seed=seed) for seed, head in enumerate(heads)]
    features, labels = (part.clone() for part in subject.train)
    fit_many(copies, features, labels, num_classes=CLASSES, device=subject.device)
    for seed, (setting, head) in enumerate(zip(settings, heads, strict=True)):
        alone = subject.fit(head=subject.head(**setting), seed=seed)
        promise(
            same(subject.logits(alone), subject.logits(head), TOGETHER),
            f"at a learning rate of {setting['lr']:g} it becomes another beside a copy at another rate; "
            "terms are computed by one head for all copies, which differ in lr and weight_decay",
        )
