"""``launch.py status``: what was launched, how far it is, and why it waits."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from nml import cli
from slurm import states
from slurm.invocation import PROG, Invocation
from slurm.table import Row, aligned, everything, launched_at, make_rows

DESCRIPTION = "Show what was launched: state, attempt, step, ETA, loss, and why it waits."
EXAMPLE = f"{PROG} status sweeps/sweep --watch"
WATCH_SECONDS = 5.0


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``status``."""
    parser.add_argument(
        "folder", nargs="?", type=str, default=None, help="a sweep or run (default: all here)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, with --watch one a line")
    parser.add_argument("--watch", action="store_true", help="show it again and again until all has ended")


def run(call: Invocation) -> int:
    """Print the table, once or until nothing is active."""
    named = call.options.folder
    as_json = call.options.json
    if not named and not as_json and not everything(Path.cwd()):
        print(f"nothing was launched from here; see: {PROG} --help")
        return 0
    while True:
        launched, unread = launched_at(named)
        members = [member for own in launched.values() for member in own]
        # To watch on, or to end, it has to be known what is in the queue.
        rows = make_rows(members, patient=call.options.watch)
        if as_json:
            told = {"time": round(time.time(), 3), "parts": list(map(row_as_json, rows))}
            shown = json.dumps(told, indent=None if call.options.watch else 1)
        else:
            shown = aligned(rows)
        if call.options.watch and not as_json and sys.stdout.isatty():
            # Past the guard of the stream, which shows such characters instead of sending them.
            sys.stdout.flush()
            sys.stdout.buffer.write(b"\x1b[2J\x1b[H")
        print(shown, flush=True)
        if not call.options.watch or not any(states.JobState(row.state).active for row in rows):
            return 1 if unread else 0
        time.sleep(WATCH_SECONDS)


def row_as_json(row: Row) -> dict[str, Any]:
    """Return a row with numbers as numbers; what is not known is null."""
    step, _, total = row.step.partition("/")
    loss = float(row.loss) if row.loss else math.nan
    return {
        "sweep": row.sweep or None,
        **{name: getattr(row, name) for name in ("stage", "name", "state", "job", "why")},
        "active": states.JobState(row.state).active,
        "attempt": int(row.attempt) if row.attempt else None,
        "step": int(step) if step else None,
        "steps": int(total) if total else None,
        "eta": row.eta or None,
        "loss": loss if math.isfinite(loss) else None,
    }
