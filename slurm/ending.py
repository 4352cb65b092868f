"""The end of a sweep, told to those who do not watch: a line in a file, and by a command of the user's.

On a cluster it is the job of the report that tells it, the last one of a sweep: nothing else is alive then.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nml.errors import some
from slurm.members import LAUNCH

ENDED = "ended.txt"
# In an argument of the user's command it is the line, which also comes through standard input.
LINE = "{line}"
_NOTIFY_SECONDS = 60
_MOST_NAMED = 4


def tell_end(sweep: Path, notify: Sequence[str]) -> None:
    """Tell that a sweep has ended, and with what; whatever fails of it is said on standard error, no more.

    Args:
        sweep: Its folder.
        notify: The user's command, empty for none.
    """
    try:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} sweep {sweep.name}: {_outcome(sweep)}"
        # The command may well reach somebody where the disk is full.
        with contextlib.suppress(OSError), (sweep / LAUNCH / ENDED).open("a") as file:
            file.write(f"{line}\n")
        if notify:
            argv = [word.replace(LINE, line) for word in notify]
            done = subprocess.run(
                argv, input=f"{line}\n", capture_output=True, text=True, timeout=_NOTIFY_SECONDS
            )
            if done.returncode:
                said = " ".join((done.stderr or done.stdout).split())
                print(f"notify: {notify[0]} ended with status {done.returncode}: {said}", file=sys.stderr)
    except Exception as error:
        print(f"notify: {type(error).__name__}: {error}", file=sys.stderr)


def _outcome(sweep: Path) -> str:
    # They import much, and this is imported by every job.
    from slurm.plan import make_plan
    from slurm.pretraining import run_member
    from slurm.sweep import load_study

    parts = [part for part in make_plan(load_study(sweep), run_member) if part.stage != "report"]
    missing = [part.member.name for part in parts if not part.complete]
    report = sweep / "report" / "report.html"
    told = f"; report: {report}" if report.exists() else "; no report"
    if not missing:
        return f"complete, {len(parts)} parts{told}"
    named = some(missing, _MOST_NAMED)
    return f"{len(parts) - len(missing)} of {len(parts)} parts are complete, not {named}{told}"
