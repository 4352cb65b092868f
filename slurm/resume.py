"""``launch.py resume``: say the command again that launched a run or a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from nml import cli
from nml.errors import UserError
from slurm.invocation import PROG, Invocation, command_line, recorded
from slurm.members import LAUNCH

DESCRIPTION = "Go on with a run or a sweep that failed or was cancelled."
EXAMPLE = f"{PROG} resume sweeps/sweep"


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``resume``."""
    parser.add_argument("folder", type=str, help="a run or a sweep")


def run(call: Invocation) -> int:
    """Launch again, from the folder where it was launched: what is complete is skipped."""
    from slurm.entry import main

    words, cwd = recorded(Path(call.options.folder).resolve() / LAUNCH)
    words = _as_a_continuation(words)
    print(command_line(*words), flush=True)
    try:
        os.chdir(cwd)
    except OSError as error:
        raise UserError(
            f"{call.options.folder}: it was launched from {cwd}, which cannot be entered: {error.strerror}",
            mend="restore that folder, or say the command above from where its paths are",
        ) from error
    return main(words)


def _as_a_continuation(words: list[str]) -> list[str]:
    """Return a command without the wish that there be no run yet: there is one now, its own."""
    kept: list[str] = []
    for word in words:
        if word == "never" and kept[-1:] == ["--resume"]:
            kept.pop()
        elif word != "--resume=never":
            kept.append(word)
    return kept
