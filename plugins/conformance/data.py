"""Checks of training data that are unusual, but legitimate, of some that are not, and of validation data."""

from __future__ import annotations

import torch

from nml.conformance import CheckFailed, promise
from plugins.conformance.subject import (
    CLASSES,
    TEST,
    TOLERANCE,
    TRAIN,
    WIDTH,
    Subject,
    promise_scores,
    same,
    separable,
)
from plugins.head import Labelled

# Share of the test samples whose class must come out as from the plain training data.
AGREEMENT = 0.8
RARE = 15
UNIT = 1_000


def refuses_labels_of_another_length(subject: Subject) -> None:
    """Features and labels that do not belong together are an error."""
    try:
        subject.fit(Labelled(subject.train.features, subject.train.labels[:-1]))
    except Exception:
        return
    raise CheckFailed(f"fit accepted {TRAIN} features with {TRAIN - 1} labels")


def refuses_to_do_without_class_embeddings(subject: Subject) -> None:
    """A head that asks for class text embeddings does not fit without them."""
    try:
        subject.fresh().fit(*subject.train, num_classes=CLASSES, seed=0, device=subject.device)
    except Exception:
        return
    raise CheckFailed("fit accepted no class embeddings")


def fewer_samples_than_features(subject: Subject) -> None:
    """Fewer samples than features is a usual case, not an error."""
    few = separable(9, seed=0, width=40)
    promise_scores(subject.fit(few).predict_logits(few.features), 9, CLASSES)


def missing_classes(subject: Subject) -> None:
    """Classes without a training sample keep their column, also the last one."""
    promise_scores(subject.logits(subject.fit(num_classes=CLASSES + 2)), TEST, CLASSES + 2)
    present = subject.train.labels != 0
    head = subject.fit(Labelled(subject.train.features[present], subject.train.labels[present]))
    promise_scores(subject.logits(head), TEST, CLASSES)


def imbalanced_classes(subject: Subject) -> None:
    """A rare class that stands apart is not lost."""
    rare = subject.train.labels == CLASSES - 1
    keep = ~rare | (rare.cumsum(0) <= RARE)
    head = subject.fit(Labelled(*(part[keep] for part in subject.train)))
    _agrees(subject, subject.classes(head), f"with {RARE} samples of one class")


def half_precision_features(subject: Subject) -> None:
    """Features stored in float16 serve as well."""
    head = subject.fit(Labelled(subject.train.features.half(), subject.train.labels))
    scores = head.predict_logits(subject.test.features.half())
    promise_scores(scores, TEST, CLASSES)
    _agrees(subject, scores.argmax(dim=1), "on float16 features")


def unit_of_features(subject: Subject) -> None:
    """Features that are 1,000 times larger get the same classes, where the head has a ``rescale``."""
    head = subject.fit(Labelled(subject.train.features * UNIT, subject.train.labels))
    scores = head.predict_logits(subject.test.features * UNIT)
    promise_scores(scores, TEST, CLASSES)
    _agrees(subject, scores.argmax(dim=1), f"on features {UNIT:,} times larger")


def strided_features(subject: Subject) -> None:
    """A view of a larger array serves as well as an array of its own."""
    wide = torch.cat([subject.train.features, torch.full_like(subject.train.features, 1e3)], dim=1)
    head = subject.fresh()
    # Not through ``Subject.fit``: its copy would be an array of its own.
    head.fit(
        wide[:, :WIDTH],
        subject.train.labels.clone(),
        num_classes=CLASSES,
        seed=0,
        device=subject.device,
        **subject.asked(subject.train.features),
    )
    promise(
        same(subject.logits(subject.fitted), subject.logits(head), TOLERANCE),
        "a strided view gives another result",
    )


def constant_features(subject: Subject) -> None:
    """Features that say nothing give finite scores."""
    head = subject.fit(Labelled(torch.ones_like(subject.train.features), subject.train.labels))
    promise_scores(subject.logits(head), TEST, CLASSES)


def _agrees(subject: Subject, found: torch.Tensor, circumstance: str) -> None:
    share = float((found == subject.classes(subject.fitted)).float().mean())
    promise(
        share >= AGREEMENT,
        f"{circumstance}, {share:.0%} of the samples get the class they get without; "
        f"expected {AGREEMENT:.0%} or more",
    )


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
