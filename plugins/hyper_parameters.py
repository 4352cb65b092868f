"""Whether hyper-parameters are what their class declares, told when they are given and not in ``fit``."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nml.errors import UserError

_NAMES = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}


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
