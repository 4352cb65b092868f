"""The state of Slurm jobs, with and without accounting.

squeue knows every job that waits or runs and, for some minutes, those that ended; scontrol knows
the same. sacct knows the past, where a cluster has it. What none of them knows is UNKNOWN, and our
own markers have to tell.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from slurm.controller import TRIES, answer, show_queue
from slurm.journal import Job, own_user

# Of the manuals of squeue from 20.11 on; the last three are of 24.05 and later.
_ACTIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "RESIZING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "LAUNCH_FAILED",
    "POWER_UP_NODE",
    "RECONFIG_FAIL",
}
_ANSWER_SECONDS = 120
UNKNOWN = "UNKNOWN"


class JobState(NamedTuple):
    """What Slurm says of a job.

    Attributes:
        state: Slurm's word, for example RUNNING, or UNKNOWN.
        reason: Why it waits, as squeue says it; empty where it does not wait.
        nodes: The nodes it runs on.
        restarts: How often it was requeued.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0

    @property
    def active(self) -> bool:
        """Whether it may still run."""
        return self.state in _ACTIVE


def job_states(jobs: Iterable[Job], *, tries: int = TRIES) -> dict[Job, JobState]:
    """Return the state of each job. One of its number that does not carry its token is another job.

    Args:
        jobs: The jobs.
        tries: How often to ask a queue that does not answer.

    Raises:
        NoAnswer: If it does not answer at all: a job may then be in it or not.
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    # Without the client commands this is no machine of a cluster.
    found = _from_squeue(wanted, tries) if shutil.which("squeue") else {}
    rest = [job for job in wanted if job not in found]
    if rest:
        found |= _from_sacct(rest)
    return {job: found.get(job, JobState(UNKNOWN)) for job in wanted}


def is_active(job: Job) -> bool:
    """Whether a job waits or runs.

    Raises:
        NoAnswer: If the queue does not answer.
    """
    return job_states([job])[job].active


def _by_id(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.id, []).append(job)
    return found


def _from_squeue(jobs: list[Job], tries: int) -> dict[Job, JobState]:
    """Ask the controller. Without --jobs: one id it has forgotten would hide all the others."""
    form = "%F|%K|%T|%r|%N|%k"
    others = {job.user for job in jobs if not job.is_own}
    users = {own_user(), *others} if others else ()
    listed = show_queue("--states=all", "--array", f"--format={form}", users=users, tries=tries)
    found = {}
    wanted = _by_id(jobs)
    for line in filter(None, listed.splitlines()):
        array, index, state, reason, nodes, comment = line.split("|", 5)
        for job in wanted.get(array if index == "N/A" else f"{array}_{index}", ()):
            if comment.endswith(job.token):
                found[job] = JobState(state, "" if reason == "None" else reason, nodes)
    return found


def _from_sacct(jobs: list[Job]) -> dict[Job, JobState]:
    parents = ",".join(dict.fromkeys(job.array for job in jobs))
    form = "--format=JobID,State,NodeList,WorkDir"
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", form, "--jobs", parents]
    listed = answer(argv, seconds=_ANSWER_SECONDS).stdout
    found = {}
    wanted = _by_id(jobs)
    for line in filter(None, listed.splitlines()):
        number, state, nodes, place = line.split("|", 3)
        for job in wanted.get(number, ()):
            # Few clusters keep comments. A job works in its snapshot, which lies where it was launched from.
            if is_below(place, job.folder):
                # `CANCELLED by 0` names the user.
                found[job] = JobState(state.split()[0], "", nodes)
    return found


def is_below(place: str, folder: Path) -> bool:
    """Whether a WorkDir of accounting lies in a folder; slurmdbd writes a quotation mark as a backquote."""
    return Path(place.replace('"', "`")).is_relative_to(str(folder).replace('"', "`"))
