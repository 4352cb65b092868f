"""The command line of ``python slurm/launch.py``: one parser, one subcommand a module."""

from __future__ import annotations

import sys
from typing import Protocol

from nml import cli
from nml.errors import UserError, unknown_name
from nml.urls import take_secret_of_word
from slurm import canceling, doctor, logs, pretraining, resume, status, sweep, usage
from slurm.invocation import PROG, Invocation
from slurm.shard_jobs import SHARDS
from slurm.single import PROBES

_DESCRIPTION = """Launch the rooms on a Slurm cluster, or on this machine where there is none."""
_WITH_RECIPE = ("pretrain", "sweep")
_WITH_REST = ("shards", "probes", "sweep")


class Subcommand(Protocol):
    """What a subcommand's module offers."""

    DESCRIPTION: str
    EXAMPLE: str

    def add_options(self, parser: cli.Parser) -> None:
        """Add its options."""

    def run(self, call: Invocation) -> int:
        """Do it and return the exit status."""


_SUBCOMMANDS: dict[str, Subcommand] = {
    "pretrain": pretraining,
    "sweep": sweep,
    "shards": SHARDS,
    "probes": PROBES,
    "status": status,
    "usage": usage,
    "doctor": doctor,
    "logs": logs,
    "cancel": canceling,
    "resume": resume,
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    # What was launched before there was this care may have kept a password among its words.
    words = [take_secret_of_word(word) for word in (sys.argv[1:] if argv is None else argv)]
    before, rest = split_rest(words)
    own, overrides = split_overrides(before)
    if not own:
        raise UserError("no command given", possible=", ".join(_SUBCOMMANDS), mend=f"see: {PROG} --help")
    if own[0] not in _SUBCOMMANDS and not own[0].startswith("-"):
        raise unknown_name("command", own[0], _SUBCOMMANDS)
    options = build_parser().parse_args(own)
    name = options.command
    if rest and name not in _WITH_REST:
        raise UserError(f"{name}: unknown words after --: {' '.join(rest)}")
    if overrides and name not in _WITH_RECIPE:
        raise UserError(f"{name}: unknown option {overrides[0]}", mend=f"see: {PROG} {name} --help")
    return _SUBCOMMANDS[name].run(Invocation(options[name], overrides, tuple(words), rest))


def build_parser() -> cli.Parser:
    """Return the parser of all subcommands."""
    parser = cli.Parser(PROG, _DESCRIPTION, epilog="Example:\n  " + pretraining.EXAMPLE, config=False)
    subcommands = parser.add_subcommands(dest="command")
    for name, module in _SUBCOMMANDS.items():
        own = cli.Parser(f"{PROG} {name}", module.DESCRIPTION, epilog=f"Example:\n  {module.EXAMPLE}")
        module.add_options(own)
        subcommands.add_subcommand(name, own, help=module.DESCRIPTION.splitlines()[0])
        # jsonargparse put "[options]" into it, which nobody can type.
        own.prog = f"{PROG} {name}"
    return parser


def split_rest(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split a command line at ``--``."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], tuple(words[at + 1 :])


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
