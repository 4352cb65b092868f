"""The record of a part that runs on this machine: when it began and ended, and what it had of the machine.

It lies where a job's records lie (:mod:`slurm.attempt`), in ``local-NNN/``, for ``usage`` to count.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from nml.cli import USER_ERROR_STATUS
from nml.errors import UserError
from nml.files import write_json
from nml.locking import LOCK_FILE, NoLocksError, byte_lock, is_free
from slurm.attempt import CLOSE, OPEN, attempt_number, newest_attempt
from slurm.verdict import DONE, FAILED, REQUEUE

LOCAL = "local"


def attempt_here(record: Path, run: Callable[[], int], *, cores: int = 0, gpus: int = 0) -> int:
    """Run a part and keep a record of it; return its exit status.

    A part that refuses its options has not run, and leaves no record.

    Args:
        record: Folder of the part's records.
        run: Runs it and returns its exit status.
        cores: How many of this machine's cores it has; 0 is all that this process may use.
        gpus: How many GPUs it has.
    """
    before = newest_attempt(record, LOCAL)
    folder = record / f"{LOCAL}-{attempt_number(before) + 1 if before else 0:03d}"
    own = {"nodes": 1, "cores": cores or len(os.sched_getaffinity(0)), "gpus": gpus}
    began = {"job": LOCAL, "attempt": folder.name, "node": os.uname().nodename, "had": own}
    write_json(folder / OPEN, {**began, "time": time.time()})
    with contextlib.ExitStack() as running:
        # Where there are no locks, nobody sees that it runs.
        with contextlib.suppress(NoLocksError):
            running.enter_context(byte_lock(folder / LOCK_FILE, 0, wait=True))
        status = os.EX_TEMPFAIL
        try:
            status = run()
        finally:
            # Told to stop, it has saved: the same command goes on.
            outcome = {0: DONE, os.EX_TEMPFAIL: REQUEUE}.get(status, FAILED)
            ended = {"outcome": outcome, "reason": f"exit status {status}", "status": status}
            # On a disk that is full; what the part itself says of it counts.
            with contextlib.suppress(OSError):
                write_json(folder / CLOSE, {**ended, "time": time.time()})
    if status == USER_ERROR_STATUS:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            record.rmdir()
    return status


def is_running(attempt: Path) -> bool:
    """Whether the process that keeps an attempt's record is alive; False where locks cannot tell."""
    try:
        return not is_free(attempt / LOCK_FILE)
    except (OSError, UserError):
        return False
