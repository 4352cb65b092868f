"""The command line of ``python slurm/launch.py``: one parser, one subcommand a module."""

from __future__ import annotations

import sys

from nml import cli
from slurm import canceling, logs, pretraining, resume, status, sweep
from slurm.invocation import Invocation

PROG = "python slurm/launch.py"
_DESCRIPTION = """Launch the rooms on a Slurm cluster, or on this machine where there is none."""
_SUBCOMMANDS = {
    "pretrain": pretraining,
    "sweep": sweep,
    "status": status,
    "logs": logs,
    "cancel": canceling,
    "resume": resume,
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    words, overrides = split_overrides(words)
    parser = cli.Parser(PROG, _DESCRIPTION, epilog="Example:\n  " + pretraining.EXAMPLE, config=False)
    subcommands = parser.add_subcommands(dest="command")
    for name, module in _SUBCOMMANDS.items():
        own = cli.Parser(f"{PROG} {name}", module.DESCRIPTION, epilog=f"Example:\n  {module.EXAMPLE}")
        module.add_options(own)
        subcommands.add_subcommand(name, own, help=module.DESCRIPTION.splitlines()[0])
        # jsonargparse put "[options]" into it, which nobody can type.
        own.prog = f"{PROG} {name}"
    options = parser.parse_args(words)
    return _SUBCOMMANDS[options.command].run(
        Invocation(options[options.command], overrides, (*words, *overrides))
    )


def split_overrides(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Take ``--recipe.a.b value`` and ``--recipe.a.b=value`` out of a command line.

    They belong to the recipe, which pre-training reads and checks; the launcher hands them on.
    """
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--recipe."):
            own.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides += [word, *(value for value in [next(rest, None)] if value is not None)]
    return own, tuple(overrides)
