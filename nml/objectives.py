"""Objectives: what an encoder is pre-trained to do. They are plugins of the group ``nml.objectives``.

An objective is a class; :class:`pretrain.objective.Objective` is its base and says what it does in a run.
What it declares of itself is read here, where nothing imports torch: the sets it takes, the views of a
sample, the losses that a recipe may name, and its own options, which stand in the recipe's section
``options``::

    objective: simclr
    options:
      temperature: 0.5
"""

from __future__ import annotations

import functools
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

from nml.errors import UserError, unknown_name
from nml.model_arguments import Library
from nml.recipe_checks import in_range
from nml.registry import Registry
from nml.untrusted import Untrusted, typed

Takes = Literal["class", "caption", "any"]
"""What a sample of a set comes with, as far as an objective asks for it."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of an objective that has none."""


class Declared(Protocol):
    """What an objective's class says of itself.

    Attributes:
        takes: Sets it learns from: with classes, with captions, or any.
        library: Whose ``create_model`` makes the encoder.
        losses: Values of ``recipe.loss.name``; none where there is nothing to choose.
        loss_fields: The further fields of ``recipe.loss`` that it reads.
        views: Differently augmented images of a sample in a batch.
        judged_by: What validation looks at: its scores of the classes, or the neighbours of its features.
        Options: A frozen dataclass of what stands in ``recipe.options``: numbers, flags, words, each with a
            default, checked in its ``__post_init__``.
        small: Values of a recipe, over those of the conformance kit, with which it trains at 8 pixels.
    """

    takes: ClassVar[Takes]
    library: ClassVar[Library]
    losses: ClassVar[tuple[str, ...]]
    loss_fields: ClassVar[tuple[str, ...]]
    views: ClassVar[int]
    judged_by: ClassVar[Literal["scores", "neighbours"]]
    Options: ClassVar[type[Any]]
    small: ClassVar[dict[str, Any]]


_METHODS = ("network", "begin", "backward", "empty_batch", "after_step", "tensors", "scorer")


def _fault(objective: Any) -> str | None:
    """Return what keeps an object from being an objective, or None."""
    if not isinstance(objective, type):
        return "it is no class"
    abstract = getattr(objective, "__abstractmethods__", ())
    missing = [name for name in _METHODS if not callable(getattr(objective, name, None))]
    missing += sorted(abstract)
    if missing:
        return f"it has no {', '.join(missing)}; see pretrain.objective.Objective"
    kind: Any = objective
    for name, values in (("takes", get_args(Takes)), ("library", get_args(Library))):
        if getattr(kind, name, None) not in values:
            return f"{name} is {getattr(kind, name, None)!r}, not one of {', '.join(values)}"
    if not is_dataclass(getattr(kind, "Options", None)):
        return "its Options are no dataclass"
    bare = [
        field.name
        for field in fields(kind.Options)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if bare:
        return f"its Options have no default of {', '.join(bare)}"
    views = getattr(kind, "views", None)
    if not isinstance(views, int) or views < 1:
        return f"views is {views!r}, no number of images of a sample"
    return None


OBJECTIVES = Registry(
    "nml.objectives",
    kind="objective",
    where="recipe.objective",
    listing="python -m pretrain.objectives list",
    fault=_fault,
)
"""Every registered objective, by name."""


@functools.cache
def declared(name: str) -> type[Declared]:
    """Return the class of an objective, for what it declares. Importing it may import torch.

    Raises:
        UserError: If there is none of that name, or it does not load.
    """
    objective: type[Declared] = OBJECTIVES.load(name)
    return objective


def read_options(objective: type[Declared], values: dict[str, Any]) -> Any:
    """Return the options of an objective, its defaults where ``values`` has none.

    Raises:
        UserError: If one is unknown, of another type, or impossible.
    """
    known = {field.name: field.type for field in fields(objective.Options)}
    for name in values:
        if name not in known:
            raise unknown_name("recipe.options", name, known)
    try:
        options = typed(objective.Options, values)
    except Untrusted as error:
        raise UserError(
            f"recipe.options.{error}: not what it takes",
            possible=", ".join(f"{name}: {kind}" for name, kind in known.items()),
        ) from error
    in_range("recipe.options", options)
    return options


def all_options(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all options of an objective, checked as by :func:`read_options`."""
    return asdict(read_options(declared(name), values))


def check_loss(name: str, loss: str, default: str) -> None:
    """Refuse a loss that the objective does not have.

    Args:
        name: The objective.
        loss: ``recipe.loss.name``.
        default: Its default, which counts as not written for an objective that leaves no choice.

    Raises:
        UserError: Naming those that it has.
    """
    losses = declared(name).losses
    if losses and loss not in losses:
        raise UserError(
            f"recipe.loss.name {loss}: not a loss of the objective {name}", possible=", ".join(losses)
        )
    if not losses and loss != default:
        raise UserError(
            f"recipe.loss.name {loss}: the objective {name} leaves no choice of a loss",
            mend=f"use --recipe.loss.name {default}",
        )
