"""Whether heads and tasks are registered: told before a job is submitted that would tell it hours later.

Nothing is imported for it; the names are read from the metadata of installed distributions.
"""

from __future__ import annotations

from collections.abc import Sequence

from nml.registry import Registry
from nml.sources import find_task

_HEADS = Registry("nml.heads", kind="head", where="--plugins", listing="python -m plugins list")
_TASKS = Registry("nml.tasks", kind="task", where="--tasks", listing="python -m probes.tasks list")


def check_heads(names: Sequence[str]) -> None:
    """Check that heads are registered.

    Raises:
        UserError: If one is not; near matches are named.
    """
    for name in names:
        _HEADS.find(name)


def check_tasks(texts: Sequence[str]) -> None:
    """Check that the kinds of tasks are registered: ``digits``, or ``parquet`` of ``parquet:TRAIN,TEST``.

    Raises:
        UserError: If one is not; near matches are named.
    """
    for text in texts:
        find_task(_TASKS, text.partition(":")[0])


def check_probe_words(words: Sequence[str]) -> None:
    """Check the heads and tasks that the words of ``probes.run`` name.

    Raises:
        UserError: If one is not registered; near matches are named.
    """
    for name, values in options_of(words).items():
        if name == "--plugin":
            check_heads([head.strip() for value in values for head in value.split(",") if head.strip()])
        if name == "--task":
            check_tasks(values)


def options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return what follows each option, up to the next one."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, given, value = word.partition("=")
            found[name] = [value] if given else []
        elif name:
            found[name].append(word)
    return found
