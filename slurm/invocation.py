"""One call of the launcher.

Its words are kept beside what it launches, so that ``resume`` can say them again.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import write_json
from nml.front import spelled
from nml.untrusted import Untrusted, read_object, shown

FILE = "command.json"


def launcher() -> str:
    """Return the launcher as its user typed it: by ``nml``, as a file of the checkout, or as a module."""
    door = spelled("python -m slurm.entry")
    if door.startswith("nml "):
        return door
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return "python -m slurm.launch" if spec and spec.name == "slurm.launch" else "python slurm/launch.py"


PROG = launcher()


def command_line(*words: object) -> str:
    """Return a call of the launcher as it can be pasted into a shell."""
    return f"{PROG} {shlex.join(map(str, words))}"


@dataclasses.dataclass(frozen=True)
class Invocation:
    """One call of the launcher.

    Attributes:
        options: The subcommand's parsed options.
        overrides: Dotted overrides of the recipe, as the user typed them.
        words: The whole command line after ``launch.py``.
        rest: What stands after ``--``, for the room that is launched.
    """

    options: Any
    overrides: tuple[str, ...]
    words: tuple[str, ...]
    rest: tuple[str, ...] = ()

    def record(self, folder: Path) -> None:
        """Keep the words and the folder they were said in."""
        write_json(folder / FILE, {"words": list(self.words), "cwd": str(Path.cwd())})


def recorded(folder: Path) -> tuple[list[str], Path]:
    """Return the words and the folder that :meth:`Invocation.record` kept.

    Raises:
        UserError: If the folder keeps none.
        Untrusted: If they are no words.
    """
    try:
        kept = read_object(folder / FILE, words=list, cwd=str)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder.parent}: was not launched by this command", mend="name a folder under runs/ or sweeps/"
        ) from error
    if not all(isinstance(word, str) for word in kept["words"]):
        raise Untrusted(f"words is {shown(kept['words'])}", folder / FILE)
    return kept["words"], Path(kept["cwd"])
