"""``launch.py cancel``: take a run or a sweep out of the queue."""

from __future__ import annotations

import shutil
from pathlib import Path

from nml import cli
from nml.errors import UserError
from slurm import states
from slurm.controller import cancel
from slurm.invocation import PROG, Invocation, command_line
from slurm.table import launched_under

DESCRIPTION = "Cancel the jobs of a run or a sweep; what is complete stays."
EXAMPLE = f"{PROG} cancel sweeps/sweep"


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``cancel``."""
    parser.add_argument("folder", type=str, help="a run or a sweep")


def run(call: Invocation) -> int:
    """Cancel what is active."""
    members = launched_under(Path(call.options.folder))
    launched = [member.job for member in members if member.job]
    if launched and not shutil.which("squeue"):
        raise UserError(f"{call.options.folder}: squeue is not on PATH", mend="cancel it on a login node")
    found = states.job_states(launched)
    jobs = [job for job, state in found.items() if state.active]
    cancel(jobs)
    print(f"cancelled {', '.join(jobs)}" if jobs else "nothing was in the queue")
    print(f"go on: {command_line('resume', call.options.folder)}")
    return 0
