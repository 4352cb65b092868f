"""``launch.py logs``: what a rank wrote, also while it writes."""

from __future__ import annotations

import codecs
import sys
import time
from pathlib import Path

from nml import cli
from nml.errors import UserError, unknown_name
from slurm import states
from slurm.invocation import PROG, Invocation
from slurm.table import Launched, launched_under, make_rows

DESCRIPTION = "Show the log of a rank, of all its attempts."
EXAMPLE = f"{PROG} logs runs/quickstart-n20-seed0 --follow"
POLL_SECONDS = 0.5
# Of members that a message names: those that failed, those that run, the others.
_MOST_NAMED = 12
# A job may wait for days, and its queue is everybody's.
QUEUE_SECONDS = 2.0


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``logs``."""
    parser.add_argument("folder", type=str, help="a run or a sweep")
    parser.add_argument("--member", type=str, default=None, help="which part of a sweep, as status names it")
    parser.add_argument("--rank", type=int, default=0, help="which rank")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")


def run(call: Invocation) -> int:
    """Print a log."""
    options = call.options
    member = choose(launched_under(Path(options.folder)), options.member)
    log = wait_for_log(member, options.rank) if options.follow else find_log(member, options.rank)
    # Its bytes may end within a character, and none of them is to act on the terminal.
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    with log.open("rb") as file:
        while True:
            # Whether it is over is asked before reading, so that its last words are not missed.
            over = not options.follow or not member.entry or not states.is_active(member.entry)
            while data := file.read(1 << 16):
                sys.stdout.write(decoder.decode(data))
            sys.stdout.flush()
            if over:
                return 0
            time.sleep(POLL_SECONDS)


def choose(members: list[Launched], named: str | None) -> Launched:
    """Return the member a user means: the one named, the only one, or the only one that failed.

    Raises:
        UserError: If that is none, or several.
    """
    if named is not None:
        by_name = {member.full_name: member for member in members}
        short = [member for member in members if member.name == named]
        if named in by_name:
            return by_name[named]
        if len(short) == 1:
            return short[0]
        raise unknown_name("--member", named, by_name)
    if len(members) == 1:
        return members[0]
    states_of = [row.state for row in make_rows(members)]
    likely: list[Launched] = []
    for wanted in ("FAILED", "RUNNING"):
        found = [member for member, state in zip(members, states_of, strict=True) if state == wanted]
        if len(found) == 1:
            return found[0]
        likely += found
    first = dict.fromkeys([*likely, *members])
    names = ", ".join(f"'{member.full_name}'" for member in [*first][:_MOST_NAMED])
    more = len(members) - _MOST_NAMED
    raise UserError(
        "--member: a sweep has many logs",
        possible=names if more <= 0 else f"{names} and {more} more",
        mend="" if more <= 0 else f"see: {PROG} status",
    )


def wait_for_log(member: Launched, rank: int) -> Path:
    """Return the log of a rank, which a job that waits in the queue will only begin.

    Raises:
        UserError: If there is none, and none to come.
    """
    said = False
    while True:
        # Asked before looking: a job that begins and ends in between has left its log.
        over = not member.entry or not states.is_active(member.entry)
        try:
            return find_log(member, rank)
        except UserError:
            if over:
                raise
        if not said:
            print(f"{member.name}: job {member.job} has not begun; its log follows", file=sys.stderr)
            said = True
        time.sleep(QUEUE_SECONDS)


def find_log(member: Launched, rank: int) -> Path:
    """Return the log of a rank.

    Raises:
        UserError: If there is none.
    """
    if member.job:
        log = member.logs / f"{member.job}_{rank}_log.out"
    else:
        log = member.logs.parent / "logs" / f"rank-{rank}.log"
    if log.is_file():
        return log
    if not member.job and rank == 0:
        raise UserError(
            f"{member.name}: rank 0 of a local run writes to the terminal", mend="name another: --rank 1"
        )
    raise UserError(f"{member.name}: no log of rank {rank} yet ({log})", mend=f"see: {PROG} status")
