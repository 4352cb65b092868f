"""The heads of a study: which are asked for, and the hyper-parameters each is tried with.

Heads compare fairly if each had as many tries on validation data: what a user leaves open is swept, with
TRIES settings of each head by default (``sweep`` of :class:`plugins.head.Head`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nml.errors import UserError, unknown_name
from nml.registry import Plugin
from nml.untrusted import parse_json
from plugins.head import Head, hyper_parameters
from plugins.registry import HEADS
from probes.answers import HeadFault, asked
from probes.head_code import head_code

# Settings that a head is tried with. Four are what a learning rate and a weight decay beside its own make.
TRIES = 4


@dataclasses.dataclass(frozen=True)
class HeadChoice:
    """One head of a study.

    Attributes:
        plugin: Who registered it.
        make: The class.
        code: Hash of its source, see :func:`probes.head_code.head_code`; None where there is none to read.
        candidates: Hyper-parameters to try, complete; the validation data chooses among them.
    """

    plugin: Plugin
    make: type[Head]
    code: str | None
    candidates: tuple[Mapping[str, Any], ...]

    def build(self, candidate: int) -> Head:
        """Return a fresh head with the hyper-parameters of one candidate."""
        return self.make(**self.candidates[candidate])

    @property
    def asks_for_texts(self) -> bool:
        """Whether it wants class text embeddings."""
        return bool(getattr(self.make, "uses_class_embeddings", False))

    @property
    def tries(self) -> int:
        """How many settings validation data choose among, those that a head compares by itself included."""
        return sum(own_tries(self.build(number)) for number in range(len(self.candidates)))


def check_classes(heads: Sequence[HeadChoice], task: str, num_classes: int) -> None:
    """Refuse heads whose hyper-parameters are for another number of classes.

    Args:
        heads: The heads.
        task: Name of the task.
        num_classes: K of the task.

    Raises:
        UserError: What the head says of it.
    """
    for choice in heads:
        for candidate in range(len(choice.candidates)):
            head = choice.build(candidate)
            try:
                if hasattr(head, "check_classes"):
                    head.check_classes(num_classes)
            except UserError as error:
                raise UserError(
                    f"--hyper: {choice.plugin.name}: {error.what}, for task {task}",
                    possible=error.possible,
                    mend=error.mend,
                ) from error


def own_tries(head: Head) -> int:
    """Return how many settings a fit of a head compares by itself."""
    return getattr(head, "tries", 1)


def choose_heads(names: str, hyper: Sequence[str], modality: str, *, tries: int = TRIES) -> list[HeadChoice]:
    """Return the heads that a user named.

    Args:
        names: Registered names, comma-separated.
        hyper: Settings ``NAME=VALUE``, ``NAME=VALUE,VALUE`` to choose among several on validation data,
            ``HEAD.NAME=...`` for one head alone.
        modality: ``image`` or ``text``; a head with a ``modality`` takes its defaults for it.
        tries: Settings to try of each head. What ``hyper`` names is not swept; where it makes more
            settings than that, all of them are tried.

    Raises:
        UserError: If a head or hyper-parameter is unknown, one is set twice, or a value impossible.
    """
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked:
        raise UserError("--plugin: names no head", mend="see: python -m plugins list")
    # All are loaded before any setting is judged: a misspelt head is the likelier mistake.
    classes = {name: HEADS.load(name) for name in asked}
    return [
        HeadChoice(HEADS.find(name), make, head_code(make), candidates)
        for (name, make), candidates in zip(
            classes.items(), settings_to_try(classes, hyper, modality, tries=tries), strict=True
        )
    ]


def settings_to_try(
    classes: Mapping[str, type[Any]], hyper: Sequence[str], modality: str, *, tries: int
) -> list[tuple[Mapping[str, Any], ...]]:
    """Return the complete hyper-parameters that each of several named classes is tried with.

    Args:
        classes: The classes by the names that ``hyper`` may have for them.
        hyper: As of :func:`choose_heads`.
        modality: The same.
        tries: The same.

    Raises:
        UserError: The same.
    """
    settings = [_parse(text) for text in hyper]
    known = {name: tuple(inspect.signature(make).parameters) for name, make in classes.items()}
    for setting in settings:
        _check_known(setting, known)
    for earlier, later in itertools.combinations(settings, 2):
        if (earlier.head, earlier.name) == (later.head, later.name):
            raise UserError(
                f"--hyper {earlier.text} and {later.text}: {later.name} is set twice",
                mend="name the values to try together: NAME=VALUE,VALUE",
            )
    return [_candidates(name, make, known[name], settings, modality, tries) for name, make in classes.items()]


@dataclasses.dataclass(frozen=True)
class _Setting:
    text: str
    head: str | None
    name: str
    values: tuple[Any, ...]


def _parse(text: str) -> _Setting:
    left, equals, right = text.partition("=")
    head, dot, name = left.rpartition(".")
    if not equals or not right or not name.isidentifier():
        raise UserError(f"--hyper {text}", possible="NAME=VALUE, NAME=VALUE,VALUE or HEAD.NAME=VALUE")
    return _Setting(text, head if dot else None, name, _values(right))


def _values(text: str) -> tuple[Any, ...]:
    """Return the values between commas; those inside brackets belong to one value, a list."""
    try:
        return tuple(parse_json(f"[{text}]"))
    except ValueError:
        return tuple(_value(part) for part in text.split(","))


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)


def _check_known(setting: _Setting, known: Mapping[str, Sequence[str]]) -> None:
    if setting.head is not None and setting.head not in known:
        raise unknown_name(f"--hyper {setting.text}: head", setting.head, known)
    of = known[setting.head] if setting.head else sorted({name for names in known.values() for name in names})
    if setting.name not in of:
        raise unknown_name(f"--hyper {setting.text}: hyper-parameter", setting.name, of)


def _candidates(
    name: str,
    make: type[Head],
    known: Sequence[str],
    settings: Sequence[_Setting],
    modality: str,
    tries: int,
) -> tuple[Mapping[str, Any], ...]:
    values: dict[str, tuple[Any, ...]] = {}
    if "modality" in known:
        values["modality"] = ("text" if modality == "text" else "vision",)
    # A setting for one head is said after, and so wins over, one for all.
    for setting in sorted(settings, key=lambda setting: setting.head is not None):
        if setting.name in known and setting.head in (None, name):
            values[setting.name] = setting.values
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    heads = [_built(name, make, point) for point in grid]
    compared = sum(_said(name, "tries", functools.partial(own_tries, head), _counts) for head in heads)
    budget = max(1, tries // compared)
    swept = [
        changed
        for point, head in zip(grid, heads, strict=True)
        for changed in [head, *_sweep(name, make, point, head, values)][:budget]
    ]
    # Complete hyper-parameters, defaults included: a default that changes later must change the row.
    return tuple(hyper_parameters(head) for head in swept)


def _sweep(
    name: str, make: type[Head], point: Mapping[str, Any], head: Head, given: Collection[str]
) -> list[Head]:
    """Return what a head wants tried beside its own settings, as far as the user left it open."""
    changes = _said(name, "sweep()", head.sweep, _are_changes) if hasattr(head, "sweep") else []
    return [
        _built(name, make, {**point, **change}, where="its sweep()")
        for change in changes
        if not change.keys() & set(given)
    ]


def _said(name: str, what: str, ask: Callable[[], Any], wanted: Callable[[Any], str]) -> Any:
    """Return what a head says of itself before it is fitted: it is foreign code, and may say anything."""
    mend = f"see: python -m plugins check {name}"
    try:
        said = asked(what, ask)
    except HeadFault as error:
        raise UserError(f"--plugin {name}: {error}", mend=mend) from error
    if possible := wanted(said):
        raise UserError(f"--plugin {name}: {what} is {said!r}", possible=possible, mend=mend)
    return said


def _counts(said: Any) -> str:
    return "" if isinstance(said, int) and said > 0 else "a whole number from 1"


def _are_changes(said: Any) -> str:
    fits = isinstance(said, list) and all(isinstance(change, Mapping) for change in said)
    return "" if fits else "a list of changes of hyper-parameters, each a dict"


def _built(name: str, make: type[Head], point: Mapping[str, Any], *, where: str = "--hyper") -> Head:
    try:
        return make(**point)
    except UserError as error:
        raise UserError(f"{where}: {name}: {error.what}", possible=error.possible, mend=error.mend) from error
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in point.items()) or "its defaults"
        raise UserError(f"{where}: {name} cannot take {given}: {type(error).__name__}: {error}") from error
