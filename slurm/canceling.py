"""``launch.py cancel``: take a run or a sweep out of the queue."""

from __future__ import annotations

import shutil
from pathlib import Path

from nml import cli
from nml.errors import UserError
from slurm import states
from slurm.controller import cancel
from slurm.invocation import PROG, Invocation, command_line
from slurm.members import LAUNCH
from slurm.registry import spared_jobs
from slurm.sweep import SWEEP
from slurm.table import launched_under

DESCRIPTION = "Cancel the jobs of a run or a sweep; what is complete stays."
EXAMPLE = f"{PROG} cancel sweeps/sweep"


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``cancel``."""
    parser.add_argument("folder", type=str, help="a run or a sweep")


def run(call: Invocation) -> int:
    """Cancel what is active, but for what a sweep shares with others that still want it."""
    folder = Path(call.options.folder)
    launched = [member.entry for member in launched_under(folder) if member.entry]
    if launched and not shutil.which("squeue"):
        raise UserError(f"{call.options.folder}: squeue is not on PATH", mend="cancel it on a login node")
    found = states.job_states(launched)
    jobs = [job for job, state in found.items() if state.active]
    # Who names a run means that job; who names a sweep, what was submitted for it.
    spared = spared_jobs(jobs, folder.resolve() / LAUNCH) if (folder / SWEEP).exists() else {}
    cancelled = [job.id for job in jobs if job not in spared]
    cancel(cancelled)
    print(f"cancelled {', '.join(cancelled)}" if cancelled else "nothing was in the queue")
    for job, why in spared.items():
        print(f"left job {job.id}: {why}")
    print(f"go on: {command_line('resume', call.options.folder)}")
    return 0
