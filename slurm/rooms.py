"""The other rooms: their commands, from the code beside this room, and what is registered for them by name.

Nothing is imported for it: names of heads and tasks are in the metadata of installed distributions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError
from nml.registry import Registry
from nml.run_options import task_and_heads
from nml.sources import find_task

CODE = Path(__file__).resolve().parents[1]
_CHECK_SECONDS = 300
# A Python may print as it starts, whatever its site has it say; what counts comes behind a line of our own.
_MARK = "--- the options ---"
_MARKED = (
    f"import runpy, sys; print({_MARK!r}, flush=True); del sys.argv[0]; sys.path.insert(0, {str(CODE)!r}); "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def code_environment() -> dict[str, str]:
    """Return the variables by which :func:`code_command` runs the rooms beside this one, in any folder."""
    own = [str(CODE)] if os.pathsep not in str(CODE) else []
    path = os.pathsep.join(filter(None, [*own, os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def code_command(argv: Sequence[str]) -> list[str]:
    """Return a command that runs the rooms beside this one, also where a search path would be cut in two."""
    if os.pathsep not in str(CODE) or list(argv[1:2]) != ["-m"]:
        return list(argv)
    return [argv[0], str(CODE / "slurm" / "rank.py"), str(CODE), *argv[2:]]


def check_command(argv: Sequence[str]) -> str:
    """Have a room check its own options, before a job that would do so only hours later.

    Returns:
        The resolved options, as YAML.

    Raises:
        UserError: In the room's own words.
    """
    own = [*argv, "--print_config"]
    if own[1:2] == ["-m"]:
        own[1:2] = ["-c", _MARKED]
    return answer_of(own, _CHECK_SECONDS).rpartition(f"{_MARK}\n")[2]


def answer_of(argv: Sequence[str], seconds: float) -> str:
    """Return what a command of a room prints.

    Args:
        argv: The command.
        seconds: How long it may take.

    Raises:
        UserError: In the room's own words.
    """
    asked = subprocess.run(
        argv,
        env=os.environ | code_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"]
        raise UserError(said[-1].removeprefix("error: "))
    return asked.stdout


_HEADS = Registry("nml.heads", kind="head", where="--plugins", listing="python -m plugins list")
_MODELS = Registry(
    "nml.noise", kind="noise model", where="draws: model", listing="python -m shards.write --help"
)
_TASKS = Registry("nml.tasks", kind="task", where="--tasks", listing="python -m probes.tasks list")
_PROBED = Registry("nml.tasks", kind="task", where="--probe", listing="python -m probes.tasks list")
_ENCODERS = Registry(
    "nml.encoders", kind="encoder", where="encoders", listing="python -m probes.encoders list"
)


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


def check_models(names: Sequence[str]) -> None:
    """Check that models of noise are registered.

    Raises:
        UserError: If one is not; near matches are named.
    """
    for name in names:
        _MODELS.find(name)


def check_probed(texts: Sequence[str]) -> None:
    """Check that the kinds of the tasks that ``--probe`` names are registered: ``digits`` of ``digits,lp``.

    Raises:
        UserError: If one is not; near matches are named.
    """
    for text in texts:
        find_task(_PROBED, text.partition(":")[0].partition(",")[0])


def check_probes(tasks: Sequence[str], words: Sequence[str] = ()) -> None:
    """Check the options of probes, and of their tasks and heads as far as that needs no data.

    Raises:
        UserError: In the words of ``probes.run``.
    """
    check_command([sys.executable, "-m", "probes.run", *words, "--task", *tasks])


def probed(text: str) -> tuple[str, list[str]]:
    """Return the task and the heads of what ``--probe`` names."""
    return task_and_heads(text, _HEADS.names())


def check_encoders(texts: Sequence[str]) -> None:
    """Check that the kinds of encoders are registered: ``timm`` of ``timm:resnet50``.

    Raises:
        UserError: If one is not; near matches are named.
    """
    for text in texts:
        _ENCODERS.find(text.partition(":")[0])


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
