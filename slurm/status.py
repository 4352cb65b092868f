"""``launch.py status``: what was launched, how far it is, and why it waits."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nml import cli
from slurm import states
from slurm.invocation import PROG, Invocation
from slurm.table import aligned, everything, launched_under, make_rows

DESCRIPTION = "Show what was launched: state, attempt, step, ETA, loss, and why it waits."
EXAMPLE = f"{PROG} status sweeps/sweep --watch"
WATCH_SECONDS = 5.0


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``status``."""
    parser.add_argument(
        "folder", nargs="?", type=str, default=None, help="a sweep or run (default: all here)"
    )
    parser.add_argument("--watch", action="store_true", help="show it again and again until all has ended")


def run(call: Invocation) -> int:
    """Print the table, once or until nothing is active."""
    named = call.options.folder
    folders = [Path(named)] if named else everything(Path.cwd())
    if not folders:
        print(f"nothing was launched from here; see: {PROG} --help")
        return 0
    while True:
        members = [member for folder in folders for member in launched_under(folder)]
        # To watch on, or to end, it has to be known what is in the queue.
        rows = make_rows(members, patient=call.options.watch)
        if call.options.watch and sys.stdout.isatty():
            # Past the guard of the stream, which shows such characters instead of sending them.
            sys.stdout.flush()
            sys.stdout.buffer.write(b"\x1b[2J\x1b[H")
        print(aligned(rows), flush=True)
        if not call.options.watch or not any(states.JobState(row.state).active for row in rows):
            return 0
        time.sleep(WATCH_SECONDS)
