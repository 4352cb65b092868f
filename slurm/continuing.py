"""``python -m slurm.continuing SWEEP``: submit what the queue had no room for, from inside a job.

It runs where the last job of a batch runs, on a compute node. Not every cluster allows sbatch there; it then
fails with that as its reason, which ``status`` shows, and the launch command, said again, goes on.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from nml import cli
from nml.errors import UserError
from nml.locking import held_alone
from nml.untrusted import read_typed
from slurm.executor import QueueFull
from slurm.invocation import command_line
from slurm.members import LAUNCH
from slurm.registry import BUSY
from slurm.submitting import REST, Rest, submit_sweep
from slurm.sweep import load_study

# Somebody else may launch the same sweep, and other jobs of its user may fill the queue.
_POLL_SECONDS = 20.0


def main(folder: Path) -> int:
    """Submit what is left of the sweep in ``folder``, as soon as there is room for some of it.

    Raises:
        UserError: If no more of it can be submitted from here.
    """
    again = f"on a login node: {command_line('resume', folder)}"
    if shutil.which("sbatch") is None:
        raise UserError(f"sbatch is not on the PATH of {os.uname().nodename}", mend=again)
    rest = read_typed(Rest, folder / LAUNCH / REST)
    while True:
        try:
            with held_alone(folder / LAUNCH, busy=BUSY):
                status = submit_sweep(load_study(folder), rest.resources, snapshot=Path(rest.snapshot))
            break
        except QueueFull:
            pass
        except UserError as error:
            if BUSY not in error.what:
                raise UserError(error.what, possible=error.possible, mend=again) from error
        time.sleep(_POLL_SECONDS)
    if status:
        raise UserError("the queue has no room for a job that goes on once more", mend=again)
    return 0


if __name__ == "__main__":
    cli.run(lambda: main(Path(sys.argv[1])))
