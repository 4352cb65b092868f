"""What a user types for an encoder or a task: ``KIND:ARGUMENT,ARGUMENT,option=value``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nml.errors import UserError, unknown_name

_COMMA = re.compile(r",(?![^{}]*\})")


class Spec(NamedTuple):
    """A parsed specification.

    Attributes:
        text: What the user typed.
        kind: Registered name, the part before the first colon.
        arguments: The comma-separated parts that set no option.
        options: The parts of the form ``option=value``.
    """

    text: str
    kind: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]


def split_spec(text: str) -> Spec:
    """Split a specification into kind, arguments and options, at commas that lie in no braces.

    A part counts as an option if what stands before its ``=`` is an identifier, so that a path
    such as ``/data/a=b`` stays an argument.

    Raises:
        UserError: If an option is given twice.
    """
    kind, _, rest = text.partition(":")
    arguments: list[str] = []
    options: dict[str, str] = {}
    for part in filter(None, _COMMA.split(rest)):
        name, equals, value = part.partition("=")
        if equals and name.isidentifier():
            if name in options:
                # Without the text: what a key may stand in is not judged yet.
                raise UserError(f"{kind}: {name}= is given twice", possible="one value")
            options[name] = value
        else:
            arguments.append(part)
    return Spec(text, kind, tuple(arguments), options)


def check_options(spec: Spec, known: Sequence[str], *, where: str) -> None:
    """Refuse options that ``spec.kind`` does not have.

    Raises:
        UserError: Names the first unknown option, near matches and all possible ones.
    """
    for name in spec.options:
        if name not in known:
            raise unknown_name(f"{where} {spec.text}: option", name, known)
