"""Checks of seeds, of what is left as it was, and of saved state."""

from __future__ import annotations

import safetensors.torch
import torch

from nml.conformance import promise, untouched_randomness
from nml.randomness import scrambled_randomness
from plugins.conformance.subject import CLASSES, TOLERANCE, Subject, same


def inputs_unchanged(subject: Subject) -> None:
    """Features and labels are read, never written."""
    features, labels = (part.clone() for part in subject.train)
    head = subject.fresh()
    asked = subject.asked(features)
    head.fit(features, labels, num_classes=CLASSES, seed=0, device=subject.device, **asked)
    head.transform(features)
    head.predict_logits(features)
    promise(torch.equal(features, subject.train.features), "the features were changed")
    promise(torch.equal(labels, subject.train.labels), "the labels were changed")


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
    """What is done to a returned state does not reach the head."""
    head = subject.fit()
    before = subject.logits(head)
    for value in head.state_dict().values():
        value.zero_()
    promise(same(before, subject.logits(head)), "zeroing the returned state changed the head")
