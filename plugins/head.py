"""The contract of a head: a class that learns a target from the features of a frozen encoder.

A head sees features and labels and nothing else: no images, no encoder, no noise level. Its
hyper-parameters are explicit keywords of ``__init__``, each with a default that works, and kept
under their own name; ``__init__`` does no work. ``plugins.testing`` checks the promises below.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Collection
from typing import (
    Any,
    Literal,
    NamedTuple,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import torch
from torch import Tensor

from nml.errors import UserError
from nml.labels import Target

CLASSES_ALONE: frozenset[Target] = frozenset({"classification"})
"""What a head takes whose class says nothing of it."""
HELD_OUT = 0.2
"""Share of the training samples that chooses where no validation data are given."""
_NAMES = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}


class Labelled(NamedTuple):
    """Features with their labels.

    Attributes:
        features: [N, D], any floating dtype.
        labels: Classes 0 to K - 1, int64 [N]; or what else the head takes, see :class:`Head`.
    """

    features: Tensor
    labels: Tensor


@runtime_checkable
class Head(Protocol):
    """What every head does. Tensors come in on any device and go out on the CPU, in float32.

    Labels are classes, unless the class of the head says in ``targets`` which :data:`Target` it takes:

    ==================  ========================  =====================================================
    target              labels                    scores that ``predict_logits`` returns
    ==================  ========================  =====================================================
    ``classification``  classes, int64 [N]        [N, K], whose softmax is what the head believes
    ``multilabel``      which apply, bool [N, K]  [N, K], whose sigmoid is what it believes of each label
    ``regression``      numbers, floating [N]     the numbers [N, 1], in the unit of the labels
    ==================  ========================  =====================================================

    A head may also have

    - a property ``outcome``: what its last fit chose or found besides weights, by name, as JSON-like values.
      ``probes`` records it with the result;
    - a method ``sweep()``: settings worth trying beside its own on validation data, as changes of its
      hyper-parameters, the most promising first. ``probes`` tries as many as its budget allows;
    - a method ``inference_module()``: the fitted head as a ``torch.nn.Module`` of features [N, D], made of
      parts that have an ONNX form (:mod:`plugins.onnx_graph`). ``probes.export`` needs it;
    - a keyword ``class_embeddings`` of ``fit``, where its class says ``uses_class_embeddings = True``: what
      the text tower of the encoder says of the name of each class, unit vectors float32 [K, D] in the space
      of the features. Encoders without one are refused; heads that do not ask are not given it;
    - a property ``tries``: how many settings a fit compares by itself, where that is more than one;
    - a method ``check_classes(num_classes)``: raise a UserError where its hyper-parameters are for another
      number of classes. ``probes`` calls it before anything is computed.
    """

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> Any:
        """Learn from features [N, D] and labels int64 [N]; the result depends on nothing else but the seed.

        Args:
            features: [N, D], any floating dtype; left unchanged.
            labels: Classes 0 to K - 1, int64 [N], or those of another target; left unchanged.
            validation: More features and labels, to choose hyper-parameters by. Only a head whose class
                says ``uses_validation = True`` may let them change its result.
            num_classes: K; 1 of numbers. None means the largest label of ``labels`` and ``validation``, plus
                one, or what the shape of the labels says.
            seed: Fixes every random choice. The global random state is left as it was.
            device: Where to compute, for example ``cpu`` or ``cuda:0``.

        Raises:
            UserError: If shapes or labels do not fit together.
        """

    def transform(self, features: Tensor) -> Tensor:
        """Return the features as the head reshapes them, [N, H]. A linear head returns them as they are."""

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return logits [N, K]: the largest names the class, and their softmax is what the head believes.

        Of another target they are what the table of :class:`Head` says. Each row depends on its own input
        only.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was learnt, as tensors that safetensors can store."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of a head with the same hyper-parameters; afterwards both predict the same."""


def hyper_parameters(head: Any) -> dict[str, Any]:
    """Return a head's hyper-parameters by name, as its ``__init__`` declares them."""
    return {name: getattr(head, name) for name in inspect.signature(type(head)).parameters}


def hold_out(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Return what a head that chooses by validation data fits on and chooses by, where it is given none."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    order = order.to(data.features.device)
    count = round(HELD_OUT * len(order))
    # A set of one sample has nothing to hold out; it then judges its own fit.
    held, kept = order[: max(1, count)], order[count:]
    return Labelled(data.features[kept], data.labels[kept]), Labelled(data.features[held], data.labels[held])


def target_of(labels: Tensor) -> Target | None:
    """Return which target labels are of, by their dtype and dimensions; None if they are none."""
    if labels.ndim == 1 and labels.dtype == torch.int64:
        return "classification"
    if labels.ndim == 2 and labels.dtype == torch.bool:
        return "multilabel"
    return "regression" if labels.ndim == 1 and labels.is_floating_point() else None


def targets_of(head: Any) -> frozenset[Target]:
    """Return which targets a head, or its class, takes."""
    return frozenset(getattr(head, "targets", CLASSES_ALONE))


def check_data(
    features: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor] | None,
    num_classes: int | None,
    *,
    targets: Collection[Target] = CLASSES_ALONE,
) -> int:
    """Return K, 1 of numbers, after checking what ``fit`` was given.

    Args:
        features: As ``fit`` was given them; so are the next three.
        labels: Their labels.
        validation: Features and labels.
        num_classes: K, if it is known.
        targets: Which labels the head takes.

    Raises:
        UserError: If shapes, dtypes or labels do not fit together, or the head takes no such labels.
    """
    found = 0
    for name, part in (("training", Labelled(features, labels)), ("validation", validation)):
        if part is None:
            continue
        rows, given = part
        if rows.ndim != 2 or not rows.is_floating_point():
            raise UserError(
                f"{name} features are {rows.dtype} {list(rows.shape)}", possible="floating point [N, D]"
            )
        if not rows.isfinite().all():
            bad = (~rows.isfinite().all(dim=1)).nonzero()[:, 0]
            raise UserError(
                f"{name} features: row {int(bad[0])} is not finite ({len(bad)} of {len(rows)} rows)",
                mend="repair the features, or leave these samples out",
            )
        target = target_of(given)
        if given.shape[:1] != rows.shape[:1] or target not in targets or target != target_of(labels):
            raise UserError(
                f"{name} labels are {given.dtype} {list(given.shape)}",
                possible=" or ".join(
                    shape.format(len(rows)) for of, shape in _SHAPES.items() if of in targets
                )
                + ", one a row of the features",
            )
        if len(rows) == 0:
            raise UserError(f"{name} features are empty", possible="one row or more")
        if rows.shape[1] != features.shape[1]:
            raise UserError(
                f"validation features have {rows.shape[1]} columns",
                possible=f"{features.shape[1]}, as in training",
            )
        found = max(found, _outputs(name, given))
    if num_classes is None:
        return found
    if target_of(labels) == "classification" and found > num_classes:
        raise UserError(
            f"labels hold {found - 1}", possible=f"0 to {num_classes - 1}, as num_classes={num_classes}"
        )
    if target_of(labels) != "classification" and found != num_classes:
        raise UserError(f"labels have {found} columns", possible=f"{num_classes}, as num_classes says")
    return num_classes


_SHAPES: dict[Target, str] = {
    "classification": "torch.int64 [{}]",
    "multilabel": "torch.bool [{}, K]",
    "regression": "floating point [{}]",
}


def _outputs(name: str, labels: Tensor) -> int:
    """Return how many scores a sample the labels of one part ask for."""
    if labels.dtype == torch.bool:
        return labels.shape[1]
    if labels.is_floating_point():
        if not labels.isfinite().all():
            raise UserError(f"{name} labels are not all finite", mend="leave these samples out")
        return 1
    if labels.min() < 0:
        raise UserError(f"{name} labels hold {int(labels.min())}", possible="classes counted from 0")
    return int(labels.max()) + 1


def check_types(head: Any) -> None:
    """Compare the hyper-parameters of a head, a dataclass, with its annotations.

    Numbers, texts, ``Literal`` and tuples of these are checked, and unions of them; other annotations allow
    everything.

    Raises:
        UserError: Naming the first value of another type.
    """
    try:
        hints = get_type_hints(type(head))
    except NameError:
        # Annotations that only a type checker can resolve.
        return
    for field in dataclasses.fields(head):
        value = getattr(head, field.name)
        if field.init and not _fits(value, hints[field.name]):
            raise UserError(f"{field.name} {value!r}", possible=_described(hints[field.name]))


def at_least(head: Any, least: float, *names: str) -> None:
    """Refuse hyper-parameters below ``least``.

    Raises:
        UserError: Naming the first.
    """
    for name in names:
        if not getattr(head, name) >= least:
            raise UserError(f"{name} {getattr(head, name)}", possible=f"{least:g} or more")


def share(head: Any, *names: str) -> None:
    """Refuse hyper-parameters outside 0 (excluded) to 1.

    Raises:
        UserError: Naming the first.
    """
    for name in names:
        if not 0 < getattr(head, name) <= 1:
            raise UserError(f"{name} {getattr(head, name)}", possible="above 0 to 1")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        # True counts as 1 in Python.
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(one) for one in arguments)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {_described(arguments[0])}"
    return "None" if hint is types.NoneType else _NAMES.get(hint, str(hint))
