"""The boundary: what a file of somebody else's may be, before anything is made of it.

Sets, exports, checkpoints, recipes, saved heads, rows and caches travel between people. All that is read of
them as JSON or YAML, becomes part of a path, or is shown, passes here first; images have their own door in
:mod:`nml.images`, arguments of model factories theirs in :mod:`nml.model_arguments`. What must not pass is an
:class:`Untrusted` error, which is a ``ValueError``: readers tell it as they tell a damaged file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import stat
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# A set of a billion samples has a set.json of some ten megabytes; Python takes up to thirty times the size
# of a text for what it holds, so a limit on its containers goes with that on its bytes.
MOST_BYTES = 32 << 20
MOST_CONTAINERS = 1_000_000
MOST_DEPTH = 64
# The state of a random generator is a whole number of 128 bits.
MOST_DIGITS = 40
# Recipes, cluster files and studies are written by hand.
MOST_YAML_BYTES = 1 << 20
MOST_YAML_NODES = 100_000

_LONG_NUMBER = re.compile(r"[0-9]{20}")
# Too short to be deep or to repeat itself, which every single value of a command line is.
_HARMLESS_YAML = 200
# Control characters but line breaks and tabs; halves of characters, which cannot be encoded; and the marks
# that make a terminal or an editor show text in another order than it has.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_NAME_BYTES = 200


class Untrusted(ValueError):
    """What a file holds cannot or must not be read; the message says why, as a clause.

    Attributes:
        path: The file, where it is known: for who has nothing better to say of it.
    """

    def __init__(self, why: str, path: Path | None = None) -> None:
        super().__init__(why)
        self.path = path


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: If it cannot be read.
        Untrusted: If it is a device or a pipe, or larger than ``most``.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise Untrusted("it is no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Untrusted(f"it has more than {most:,} bytes")
    return data


def read_json(path: Path, *, most: int = MOST_BYTES, containers: int = MOST_CONTAINERS) -> Any:
    """Return what a JSON file holds; limits as in :func:`parse_json`.

    Raises:
        OSError: If it cannot be read.
        Untrusted: If it is no JSON, or too large, too deep or of numbers too long.
    """
    with _of(path):
        return parse_json(read_file(path, most), most=most, containers=containers)


def read_object(path: Path, **kinds: type | types.UnionType) -> dict[str, Any]:
    """Return the fields of a JSON file; errors as in :func:`read_json`, and others below.

    Args:
        path: The file.
        kinds: Fields that it must have, and of which type each is.

    Raises:
        Untrusted: If it holds no fields, or lacks one, or one is of another type.
    """
    with _of(path):
        return check_object(read_json(path), **kinds)


def check_object(fields: Any, **kinds: type | types.UnionType) -> dict[str, Any]:
    """Return the fields that JSON gave; see :func:`read_object`."""
    if not isinstance(fields, dict):
        raise Untrusted(f"it holds {shown(fields)}")
    for name, kind in kinds.items():
        if not isinstance(fields.get(name), kind):
            raise Untrusted(f"{name} is {shown(fields.get(name))}")
    return fields


def read_typed(kind: type[T], path: Path) -> T:
    """Return a dataclass made of what a JSON file holds; errors as in :func:`read_json` and :func:`typed`."""
    with _of(path):
        return typed(kind, read_json(path))


@contextmanager
def _of(path: Path) -> Iterator[None]:
    try:
        yield
    except Untrusted as error:
        error.path = path
        raise


def parse_json(text: str | bytes, *, most: int = MOST_BYTES, containers: int = MOST_CONTAINERS) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The text, or its UTF-8.
        most: Largest length.
        containers: Most lists and objects in it.

    Raises:
        Untrusted: If it is no JSON, or too large, too deep or of numbers too long.
    """
    if len(text) > most:
        raise Untrusted(f"it has more than {most:,} bytes")
    try:
        text = text if isinstance(text, str) else text.decode()
        brackets = text.count("[") + text.count("{")
        if brackets > containers:
            raise Untrusted(f"it has more than {containers:,} lists and objects")
        whole = _bounded_int if _LONG_NUMBER.search(text) else None
        value = json.loads(text, parse_int=whole)
    except Untrusted:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Untrusted(str(error)) from error
    if brackets > MOST_DEPTH:
        _check_depth(value)
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Untrusted(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    nested = [value]
    for _ in range(MOST_DEPTH):
        nested = [
            item
            for each in nested
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not nested:
            return
    raise _too_deep()


def _too_deep() -> Untrusted:
    return Untrusted(f"its values are nested more than {MOST_DEPTH} deep")


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; errors as in :func:`read_json`."""
    with _of(path):
        return parse_yaml(read_file(path, MOST_YAML_BYTES))


def parse_yaml(text: str | bytes) -> Any:
    """Return what a YAML text holds, aliases included as often as they are named.

    Raises:
        Untrusted: If it is no YAML, names a type of Python's, or is too large, deep or full of aliases.
    """
    import yaml

    try:
        text = text if isinstance(text, str) else text.decode()
        check_yaml(text)
        return yaml.safe_load(text)
    except Untrusted:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # The reader lets escape what a date such as 2001-99-99 or a number of 5,000 digits raises.
        raise Untrusted(str(error)) from error


def check_yaml(text: str) -> None:
    """Refuse a YAML text that would be too large in memory, or that says one thing twice.

    Raises:
        Untrusted: If it is too large, too deep, its aliases repeat too much, or a mapping has a key twice.
        yaml.YAMLError: If it is no YAML.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > _HARMLESS_YAML:
        _check_yaml_size(text, loader)
    # Readers of YAML keep the last value of such a key and say nothing.
    nodes, seen = [yaml.compose(text, Loader=loader)], set[int]()
    while nodes:
        node = nodes.pop()
        if node is None or isinstance(node, yaml.ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[tuple[str, Any], int] = {}
        for key, value in node.value:
            nodes += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise Untrusted(
                    f"it has the key {shown(key.value)} twice, in line {lines[name]} and in line {line}"
                )
            lines[name] = line


def _check_yaml_size(text: str, loader: Any) -> None:
    """Refuse a text whose values are too many or too deep, without building anything of it."""
    import yaml

    if len(text) > MOST_YAML_BYTES:
        raise Untrusted(f"it has more than {MOST_YAML_BYTES:,} characters")
    sizes: dict[str, int] = {}
    # Of each list or mapping around the current place: its anchor, and the nodes in it so far.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=loader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            # One that stands inside what it names is not there yet.
            if event.anchor not in sizes:
                raise Untrusted(f"its alias *{event.anchor} names nothing before it")
            size = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor is not None:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_DEPTH + 1:
                raise _too_deep()
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = size
        around, inside = open_nodes[-1]
        open_nodes[-1] = (around, inside + size)
        if inside + size > MOST_YAML_NODES:
            raise Untrusted(f"it has more than {MOST_YAML_NODES:,} values, its aliases counted")


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal but show itself: control characters as ``\\x1b``.

    Line breaks and tabs stay.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_printable(text: str) -> bool:
    """Whether :func:`printable` leaves a text as it is."""
    return _UNPRINTABLE.search(text) is None


def file_name(text: Any, ending: str = "") -> str:
    """Return a name that is one part of a path and stays in the folder it is joined to.

    Raises:
        Untrusted: If it is none, or does not end in ``ending``.
    """
    if (
        not isinstance(text, str)
        or text in ("", ".", "..")
        or "/" in text
        or _CONTROL.search(text)
        or len(text.encode()) > _MOST_NAME_BYTES
        or not text.endswith(ending)
    ):
        what = f"name of a file *{ending}" if ending else "name of a file"
        raise Untrusted(f"{shown(text)} is no {what} of this folder")
    return text


def sha256_text(text: Any) -> str:
    """Return a SHA-256 in 64 hexadecimal digits.

    Raises:
        Untrusted: If it is none.
    """
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise Untrusted(f"{shown(text)} is no SHA-256")
    return text


def typed(kind: type[T], values: Any) -> T:
    """Return a dataclass made of what JSON gave, each value held to the type of its field.

    Lists become tuples where the field is one, whole numbers fractions, text a path, and fields of their own
    a dataclass; other types are not converted.

    Raises:
        Untrusted: If a value is missing, unknown or of another type.
    """
    if not isinstance(values, dict):
        raise Untrusted(f"{shown(values)} is no {kind.__name__}")
    make: Callable[..., T] = kind
    hints = _hints(make)
    for name in values:
        if name not in hints:
            raise Untrusted(f"{kind.__name__} has no {shown(name)}")
    try:
        return make(**{name: _as(hints[name], value, name) for name, value in values.items()})
    except TypeError as error:
        lacking = ", ".join(name for name in _required(make) if name not in values)
        raise Untrusted(f"{kind.__name__} lacks {lacking}" if lacking else str(error)) from error


def _required(kind: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    ]


@functools.cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _as(hint: Any, value: Any, name: str) -> Any:
    """Return a value as the type of its field."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (hint is type(None) and value is None):
        return value
    if origin in (typing.Union, types.UnionType):
        for each in sorted(inner, key=lambda kind: kind is not type(value)):
            if (each is type(None)) == (value is None):
                return _as(each, value, name)
    elif origin is typing.Literal:
        if isinstance(value, str) and value in inner:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(_as(inner[0], item, name) for item in value)
    elif origin is dict and isinstance(value, dict):
        return {_as(inner[0], key, name): _as(inner[1], item, name) for key, item in value.items()}
    elif dataclasses.is_dataclass(hint):
        return typed(typing.cast("type[Any]", hint), value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= 2**63 else _refuse(name, value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**63 else _refuse(name, value)
    elif hint in (str, bool) and isinstance(value, hint):
        return value
    return _refuse(name, value)


def _refuse(name: str, value: Any) -> Any:
    raise Untrusted(f"{name} is {shown(value)}")


def shown(value: Any) -> str:
    """Return a value for a message: short, and without what a terminal would act on."""
    text = ascii(value) if isinstance(value, str) else printable(repr(value)[:200])
    return text if len(text) <= 80 else f"{text[:77]}..."
