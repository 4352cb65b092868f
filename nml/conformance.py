"""What the kits of small named checks share: heads, noise models, sources, tasks and encoders have one each.

A kit is the functions of a module, each of which holds one subject to one promise: it returns if that is
kept, raises :class:`CheckFailed` with what was promised and what was seen if not, and ``unittest.SkipTest``
where there is nothing to look at. Under pytest a check is a test as it stands::

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_my_model_keeps_its_promises(check):
        check(Subject(MyModel))
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

from nml.errors import UserError
from nml.randomness import equal_states, random_states

Subject = TypeVar("Subject")


class CheckFailed(Exception):
    """A promise was broken; the message says which and how."""


class Outcome(NamedTuple):
    """How one check went.

    Attributes:
        name: The check.
        status: ``ok``, ``FAIL``, ``xfail`` for a failure that was announced, ``skip`` where it does not
            apply.
        message: What was promised and what was seen, or why it does not apply; empty when ok.
    """

    name: str
    status: Literal["ok", "FAIL", "xfail", "skip"]
    message: str


def promise(held: bool, text: str) -> None:
    """Fail the running check with ``text`` unless ``held``."""
    if not held:
        raise CheckFailed(text)


def refused(call: Callable[[], object], what: str) -> None:
    """Fail the running check unless a call is refused as a user's mistake, in one line."""
    try:
        call()
    except UserError:
        return
    raise CheckFailed(f"accepted {what}")


def checks_of(*modules: str) -> dict[str, Callable[[Any], None]]:
    """Return the kit that modules hold: in order, every public function that takes a ``subject`` alone.

    A function that returns something is none, but a step of others.
    """
    return {
        name: function
        for module in modules
        for name, function in vars(sys.modules[module]).items()
        if inspect.isfunction(function)
        and function.__module__ == module
        and not name.startswith("_")
        and list(inspect.signature(function).parameters) == ["subject"]
        and function.__annotations__["return"] in (None, "None")
    }


def outcomes(
    checks: Mapping[str, Callable[[Subject], None]],
    subject: Subject,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> Iterator[Outcome]:
    """Yield the outcome of every check, in order.

    Args:
        checks: The kit.
        subject: What is held to it.
        expected_failures: Names of checks that may fail, each with the reason.
    """
    expected = expected_failures or {}
    for name, function in checks.items():
        try:
            function(subject)
        except unittest.SkipTest as reason:
            yield Outcome(name, "skip", str(reason))
        # What is checked is foreign code: whatever it raises, sys.exit() among it, is the finding.
        except (Exception, SystemExit) as error:
            found = str(error) if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}"
            yield Outcome(name, "xfail" if name in expected else "FAIL", expected.get(name, found))
        else:
            yield Outcome(name, "ok", "")


def show(found: Iterable[Outcome], title: str) -> int:
    """Print one line a check as it ends, then their numbers after ``title``; return 1 if any failed."""
    failed = passed = 0
    for outcome in found:
        print(f"{outcome.status:4}  {outcome.name}", flush=True)
        if outcome.message:
            print(textwrap.indent(textwrap.fill(outcome.message, 100), "      "))
        failed += outcome.status == "FAIL"
        passed += outcome.status == "ok"
    print(f"{title}: {passed} checks passed, {failed} failed")
    return int(failed > 0)


@contextmanager
def untouched_randomness(what: str) -> Iterator[None]:
    """Fail the running check if a block moves a global random generator of torch, numpy or Python."""
    before = random_states()
    yield
    promise(equal_states(before, random_states()), f"{what} moved a global random generator")


@contextmanager
def files_opened() -> Iterator[list[str]]:
    """Yield a list that fills with the paths of the files that Python opens during a block."""
    opened: list[str] = []
    _install_hook()
    _watches.append(opened)
    try:
        yield opened
    finally:
        _watches.remove(opened)


_watches: list[list[str]] = []


@functools.cache
def _install_hook() -> None:
    # Once: no hook can be taken out again.
    sys.addaudithook(_note_file)


def _note_file(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watches and isinstance(arguments[0], (str, bytes, os.PathLike)):
        for opened in _watches:
            opened.append(os.fsdecode(arguments[0]))


def address(thing: Any) -> str:
    """Return where another process finds an object of a module, ``package.module:name``.

    Raises:
        unittest.SkipTest: If no module has it under a name.
    """
    module = sys.modules.get(getattr(thing, "__module__", ""))
    if module is not None and module.__name__ != "__main__":
        for name, value in vars(module).items():
            if value is thing:
                return f"{module.__name__}:{name}"
    raise unittest.SkipTest("no module has it under a name by which another process could find it")


def found_at(place: str) -> Any:
    """Return the object at an :func:`address`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def in_another_process(function: Callable[..., str], *arguments: str) -> str:
    """Return the one line that a function of a module answers in a process of its own.

    Hashes of texts differ there, and with them the order of every set of texts.

    Raises:
        CheckFailed: If the process fails; with the last line it wrote.
    """
    code = "import sys; from nml.conformance import found_at; print(found_at(sys.argv[1])(*sys.argv[2:]))"
    environment = os.environ | {
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, address(function), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    last = (done.stderr.strip().splitlines() or [""])[-1]
    promise(done.returncode == 0, f"in another process it fails: {last}")
    return done.stdout.splitlines()[-1]
