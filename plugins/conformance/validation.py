"""Checks of what a head does with validation data."""

from __future__ import annotations

from nml.conformance import promise
from plugins.conformance.subject import CLASSES, Subject, same
from plugins.head import Labelled


def validation_is_not_peeked_at(subject: Subject) -> None:
    """Validation data change nothing, unless the class says ``uses_validation = True``."""
    head = subject.fit(validation=Labelled(subject.test.features.clone(), subject.test.labels.flip(0)))
    promise(
        same(subject.logits(subject.fitted), subject.logits(head)),
        "validation data changed the result, and the class does not say uses_validation = True",
    )


def validation_only_chooses(subject: Subject) -> None:
    """A head that uses validation data lets them choose, and does not learn from them."""
    # One class is known to the validation data alone: a head that only chooses cannot learn to name it.
    last = CLASSES - 1
    known = subject.train.labels != last
    train = Labelled(subject.train.features[known], subject.train.labels[known])
    head = subject.fit(train, validation=subject.test)
    unknown = subject.test.labels == last
    named = float((subject.classes(head)[unknown] == last).float().mean())
    promise(named <= 0.5, f"{named:.0%} of a class that only the validation data hold was recognised")
