"""What a head promises, as small named checks; ``plugins.testing`` runs them under pytest.

Each check makes its own heads from the class's defaults, on a small problem that any classifier
solves. A check that fails says what was promised and what was seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from plugins.head import Labelled, hyper_parameters
from plugins.registry import contract_fault

CLASSES = 3
WIDTH = 12
TRAIN = 240
TEST = 60
# The same features in another batch go through other kernels; that is all that may differ.
TOLERANCE = 1e-4


class CheckFailed(Exception):
    """A head broke a promise; the message says which and how."""


class Outcome(NamedTuple):
    """How one check went.

    Attributes:
        name: The check.
        status: ``ok``; ``FAIL``; ``xfail`` for a failure that was announced.
        message: What was promised and what was seen; empty when ok.
    """

    name: str
    status: Literal["ok", "FAIL", "xfail"]
    message: str


class Subject:
    """A head class under check, and its defaults fitted once for the checks that only look.

    Args:
        head: The class.
        device: Where it computes.
    """

    def __init__(self, head: type[Any], device: str = "cpu") -> None:
        self.head = head
        self.device = device
        self.train = separable(TRAIN, seed=0)
        self.test = separable(TEST, seed=1)
        self._fitted: Any = None

    def fit(self, data: Labelled | None = None, *, seed: int = 0, **more: Any) -> Any:
        """Return a fresh head, fitted."""
        head = self.head()
        features, labels = data or self.train
        head.fit(features, labels, seed=seed, device=self.device, **{"num_classes": CLASSES, **more})
        return head

    @property
    def fitted(self) -> Any:
        """A head fitted on the training data with seed 0; checks must not fit it again."""
        if self._fitted is None:
            self._fitted = self.fit()
        return self._fitted

    def logits(self, head: Any) -> Tensor:
        """Return a head's scores of the test data."""
        scores: Tensor = head.predict_logits(self.test.features)
        return scores


def separable(samples: int, *, seed: int, classes: int = CLASSES, width: int = WIDTH) -> Labelled:
    """Return one tight cluster a class, far from the others, in equal numbers."""
    generator = torch.Generator().manual_seed(seed)
    centres = 12 * torch.eye(classes, width)
    labels = torch.arange(samples) % classes
    return Labelled(centres[labels] + 0.5 * torch.randn(samples, width, generator=generator), labels)


def promise(held: bool, text: str) -> None:
    """Fail the running check with ``text`` unless ``held``."""
    if not held:
        raise CheckFailed(text)


def same(first: Tensor, second: Tensor, tolerance: float = 0.0) -> bool:
    """Whether two tensors have one shape and differ by no more than the tolerance, relative to their size."""
    if first.shape != second.shape:
        return False
    return bool(
        torch.allclose(first, second, rtol=tolerance, atol=tolerance * float(second.abs().max().clamp(1)))
    )


CHECKS: dict[str, Callable[[Subject], None]] = {}


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Add a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def run_checks(
    head: type[Any], *, device: str = "cpu", expected_failures: Mapping[str, str] | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of every check, in order.

    Args:
        head: The class to check.
        device: Where it computes.
        expected_failures: Names of checks that may fail, each with the reason.
    """
    subject = Subject(head, device)
    expected = expected_failures or {}
    for name, function in CHECKS.items():
        try:
            function(subject)
        # A head is foreign code: whatever it raises is the finding.
        except Exception as error:
            found = str(error) if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}"
            yield Outcome(name, "xfail" if name in expected else "FAIL", expected.get(name, found))
        else:
            yield Outcome(name, "ok", "")


@check
def has_every_method(subject: Subject) -> None:
    """Every method is there; every hyper-parameter is an explicit keyword with a default."""
    fault = contract_fault(subject.head)
    promise(fault is None, f"the class is no head: {fault}")


@check
def init_does_no_work(subject: Subject) -> None:
    """``__init__`` keeps its arguments under their names, unchanged, and draws no random number."""
    before = _random_states()
    head = subject.head()
    promise(_equal_states(before, _random_states()), "__init__ drew from a global random generator")
    learnt = [name for name, value in vars(head).items() if isinstance(value, (Tensor, torch.nn.Module))]
    promise(not learnt, f"__init__ built {', '.join(learnt)}; nothing is known of the data before fit")
    other = subject.head(**hyper_parameters(head))
    promise(
        hyper_parameters(head) == hyper_parameters(other),
        "hyper-parameters do not survive __init__ unchanged",
    )


@check
def hyper_parameters_are_plain(subject: Subject) -> None:
    """Hyper-parameters can be written into a result as JSON."""
    found = hyper_parameters(subject.head())
    try:
        json.dumps(found)
    except TypeError as error:
        raise CheckFailed(f"hyper-parameters {found} are no JSON: {error}") from error


@check
def refuses_unknown_hyper_parameter(subject: Subject) -> None:
    """A misspelt hyper-parameter is an error, not ignored."""
    try:
        subject.head(no_such_hyper_parameter=1)
    except TypeError:
        return
    raise CheckFailed("__init__ accepted no_such_hyper_parameter=1")


@check
def refuses_to_predict_unfitted(subject: Subject) -> None:
    """Predicting before fit is an error, not an answer."""
    try:
        subject.head().predict_logits(subject.test.features)
    except Exception:
        return
    raise CheckFailed("predict_logits before fit gave an answer")


@check
def refuses_labels_of_another_length(subject: Subject) -> None:
    """Features and labels that do not belong together are an error."""
    try:
        subject.fit(Labelled(subject.train.features, subject.train.labels[:-1]))
    except Exception:
        return
    raise CheckFailed(f"fit accepted {TRAIN} features with {TRAIN - 1} labels")


@check
def beats_chance(subject: Subject) -> None:
    """Separable classes are told apart with at least 80 % accuracy on unseen samples."""
    accuracy = _accuracy(subject.fitted, subject.test)
    promise(accuracy >= 0.8, f"accuracy {accuracy:.2f} on separable classes; expected 0.80 or more")


@check
def logits_shape(subject: Subject) -> None:
    """``predict_logits`` gives float32 [N, K] on the CPU, finite, without a gradient."""
    _well_formed("predict_logits", subject.logits(subject.fitted), TEST, CLASSES)


@check
def transform_shape(subject: Subject) -> None:
    """``transform`` gives float32 [N, H] on the CPU, finite, without a gradient."""
    _well_formed("transform", subject.fitted.transform(subject.test.features), TEST, None)


@check
def refit_gives_the_same(subject: Subject) -> None:
    """Data and seed determine the result, whatever the head or the random generators did before."""
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    again = subject.fit()
    promise(
        same(subject.logits(subject.fitted), subject.logits(again)),
        "a second head with seed 0 differs from the first",
    )
    again.fit(subject.test.features, subject.test.labels, seed=1, device=subject.device, num_classes=CLASSES)
    again.fit(
        subject.train.features, subject.train.labels, seed=0, device=subject.device, num_classes=CLASSES
    )
    promise(
        same(subject.logits(subject.fitted), subject.logits(again)),
        "fitting the same head again remembers the fit before",
    )


@check
def leaves_global_randomness_alone(subject: Subject) -> None:
    """Fit and predict leave the global random generators of torch, numpy and Python as they were."""
    before = _random_states()
    subject.logits(subject.fit())
    promise(_equal_states(before, _random_states()), "fit or predict_logits moved a global random generator")


@check
def inputs_unchanged(subject: Subject) -> None:
    """Features and labels are read, never written."""
    features, labels = (part.clone() for part in subject.train)
    head = subject.fit(Labelled(features, labels))
    head.transform(features)
    head.predict_logits(features)
    promise(torch.equal(features, subject.train.features), "the features were changed")
    promise(torch.equal(labels, subject.train.labels), "the labels were changed")


@check
def hyper_parameters_unchanged(subject: Subject) -> None:
    """Fit keeps hyper-parameters as they were given; what it finds out is state."""
    head = subject.head()
    before = hyper_parameters(head)
    head.fit(*subject.train, seed=0, device=subject.device, num_classes=CLASSES)
    promise(hyper_parameters(head) == before, f"fit changed {before} to {hyper_parameters(head)}")


@check
def state_round_trip(subject: Subject) -> None:
    """A fresh head with the state, through safetensors, predicts and transforms the same."""
    state = safetensors.torch.load(safetensors.torch.save(subject.fitted.state_dict()))
    restored = subject.head()
    restored.load_state_dict(state)
    promise(
        same(subject.logits(subject.fitted), subject.logits(restored), TOLERANCE),
        "other scores after load_state_dict",
    )
    features = subject.test.features
    promise(
        same(subject.fitted.transform(features), restored.transform(features), TOLERANCE),
        "other transformed features after load_state_dict",
    )


@check
def state_is_a_copy(subject: Subject) -> None:
    """What is done to a returned state does not reach the head."""
    head = subject.fit()
    before = subject.logits(head)
    for value in head.state_dict().values():
        value.zero_()
    promise(same(before, subject.logits(head)), "zeroing the returned state changed the head")


@check
def rows_are_independent(subject: Subject) -> None:
    """A sample's scores do not depend on the batch it comes in; one sample is a batch."""
    whole = subject.logits(subject.fitted)
    for row in (0, TEST - 1):
        alone = subject.fitted.predict_logits(subject.test.features[row : row + 1])
        promise(
            same(whole[row : row + 1], alone, TOLERANCE),
            f"sample {row} alone scores differently than in a batch",
        )


@check
def fewer_samples_than_features(subject: Subject) -> None:
    """Fewer samples than features is a usual case, not an error."""
    data = separable(9, seed=0, width=40)
    _well_formed("predict_logits", subject.fit(data).predict_logits(data.features), 9, CLASSES)


@check
def missing_classes(subject: Subject) -> None:
    """Classes without a training sample keep their column, also the last one."""
    head = subject.fit(num_classes=CLASSES + 2)
    _well_formed("predict_logits", subject.logits(head), TEST, CLASSES + 2)
    present = subject.train.labels != 0
    head = subject.fit(Labelled(subject.train.features[present], subject.train.labels[present]))
    _well_formed("predict_logits", subject.logits(head), TEST, CLASSES)


@check
def imbalanced_classes(subject: Subject) -> None:
    """A rare class that stands apart is not lost."""
    rare = subject.train.labels == 2
    keep = ~rare | (rare.cumsum(0) <= 20)
    accuracy = _accuracy(subject.fit(Labelled(*(part[keep] for part in subject.train))), subject.test)
    promise(accuracy >= 0.8, f"accuracy {accuracy:.2f} with 20 samples of one class; expected 0.80 or more")


@check
def half_precision_features(subject: Subject) -> None:
    """Features stored in float16 serve as well."""
    head = subject.fit(Labelled(subject.train.features.half(), subject.train.labels))
    scores = head.predict_logits(subject.test.features.half())
    _well_formed("predict_logits", scores, TEST, CLASSES)
    accuracy = float((scores.argmax(dim=1) == subject.test.labels).float().mean())
    promise(accuracy >= 0.8, f"accuracy {accuracy:.2f} on float16 features; expected 0.80 or more")


@check
def strided_features(subject: Subject) -> None:
    """A view of a larger array serves as well as an array of its own."""
    wide = torch.cat([subject.train.features, torch.full_like(subject.train.features, 1e3)], dim=1)
    head = subject.fit(Labelled(wide[:, :WIDTH], subject.train.labels))
    promise(
        same(subject.logits(subject.fitted), subject.logits(head), TOLERANCE),
        "a strided view gives another result",
    )


@check
def constant_features(subject: Subject) -> None:
    """Features that say nothing give finite scores."""
    head = subject.fit(Labelled(torch.ones_like(subject.train.features), subject.train.labels))
    _well_formed("predict_logits", subject.logits(head), TEST, CLASSES)


@check
def validation_is_not_peeked_at(subject: Subject) -> None:
    """Validation data change nothing, unless the class says ``uses_validation = True``."""
    if getattr(subject.head, "uses_validation", False):
        return
    head = subject.fit(validation=Labelled(subject.test.features, subject.test.labels.flip(0)))
    promise(
        same(subject.logits(subject.fitted), subject.logits(head)),
        "validation data changed the result, and the class does not say uses_validation = True",
    )


@check
def validation_only_chooses(subject: Subject) -> None:
    """A head that uses validation data lets them choose, and does not learn from them."""
    if not getattr(subject.head, "uses_validation", False):
        return
    # One class is known to the validation data alone: a head that only chooses cannot learn to name it.
    known = subject.train.labels != 2
    train = Labelled(subject.train.features[known], subject.train.labels[known])
    head = subject.fit(train, validation=subject.test)
    unknown = subject.test.labels == 2
    named = float((subject.logits(head)[unknown].argmax(dim=1) == 2).float().mean())
    promise(named <= 0.5, f"{named:.0%} of a class that only the validation data hold was recognised")


@check
def device_in_and_cpu_out(subject: Subject) -> None:
    """Features may come on the head's device; results come back on the CPU, the same."""
    features = subject.test.features.to(subject.device)
    moved = subject.fit(Labelled(*(part.to(subject.device) for part in subject.train)))
    scores = moved.predict_logits(features)
    _well_formed("predict_logits", scores, TEST, CLASSES)
    promise(
        same(subject.logits(subject.fitted), scores, TOLERANCE),
        f"other scores for features on {subject.device}",
    )


def _well_formed(method: str, result: Tensor, rows: int, columns: int | None) -> None:
    promise(isinstance(result, Tensor), f"{method} returned {type(result).__name__}, not a tensor")
    expected = f"[{rows}, {columns or 'H'}]"
    shape = list(result.shape)
    fits = len(shape) == 2 and shape[0] == rows and columns in (None, shape[1])
    promise(fits, f"{method} returned {shape}; expected {expected}")
    promise(result.dtype == torch.float32, f"{method} returned {result.dtype}; expected torch.float32")
    promise(result.device.type == "cpu", f"{method} returned a tensor on {result.device}; expected the CPU")
    promise(not result.requires_grad, f"{method} returned a tensor that still requires a gradient")
    promise(bool(result.isfinite().all()), f"{method} returned nan or infinity")


def _accuracy(head: Any, data: Labelled) -> float:
    return float((head.predict_logits(data.features).argmax(dim=1) == data.labels).float().mean())


def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), _numpy_state(), random.getstate()


def _numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1]


def _equal_states(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return bool(torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2])
