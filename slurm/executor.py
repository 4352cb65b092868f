"""The one place that talks to submitit: a submission becomes sbatch text and a Slurm job.

submitit writes the batch script, pickles the command and calls sbatch. What is set here is what it
would get wrong for training: its five-minute time limit, its wckey and name, srun that loses
``--cpus-per-task`` and waits for dead ranks, and children of a failed job that wait for ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.lifeline import MEETING_NAME
from slurm import container
from slurm.attempt import BEGAN
from slurm.cluster import Resources
from slurm.controller import BUSY, TRIES, cancel_by_token, pause
from slurm.job import JobCommand
from slurm.journal import Journal
from slurm.members import Submission

_RANK_VARIABLES = {
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    MEETING_NAME,
}
_FULL = re.compile(r"MaxSubmit\w*|job submit limit")


class QueueFull(UserError):
    """Slurm takes no more jobs of this user: a limit of the account, the partition or the QOS."""


def parameters(submission: Submission, resources: Resources, dependency: str) -> dict[str, Any]:
    """Return submitit's parameters for a submission.

    Args:
        submission: What to run.
        resources: What each member asks for.
        dependency: Slurm's words for what to wait for, or nothing.
    """
    further = {name.replace("_", "-"): value for name, value in resources.sbatch.items()}
    # Sites book by comments. The token comes last: jobs are found by how their comment ends.
    comment = " ".join([*(str(own) for own in [further.pop("comment", None)] if own), submission.token])
    wanted: dict[str, Any] = {
        "job_name": submission.stage,
        "time": resources.minutes,
        "nodes": resources.nodes + resources.spare_nodes,
        "ntasks_per_node": resources.tasks,
        "cpus_per_task": resources.cpus_per_task,
        "comment": comment,
        "wckey": None,
        "signal_delay_s": resources.signal_delay_s,
        "array_parallelism": resources.array_parallelism,
        "stderr_to_stdout": True,
        "setup": _setup(submission, resources),
        # The job starts its agents itself (slurm.job).
        "use_srun": False,
        "additional_parameters": {
            "chdir": submission.snapshot,
            "requeue": True,
            # The rest of the nodes goes on where one is lost.
            "no-kill": True,
            **further,
        },
    }
    if submission.indices:
        at_once = min(len(submission.indices), resources.array_parallelism)
        wanted["additional_parameters"]["array"] = f"{_ranges(submission.indices)}%{at_once}"
    for name in ("partition", "account", "qos", "constraint", "exclude"):
        wanted[name] = getattr(resources, name) or None
    if resources.gpus_per_node:
        kind = f"{resources.gpu_type}:" if resources.gpu_type else ""
        wanted["gpus_per_node"] = f"{kind}{resources.gpus_per_node}"
    if resources.mem_gb:
        wanted["mem"] = f"{round(resources.mem_gb * 1024)}MB"
    if dependency := dependency or resources.after_words:
        wanted["dependency"] = dependency
        # A child of a failed job would otherwise wait for ever.
        wanted["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    return wanted


def _ranges(indices: Sequence[int]) -> str:
    """Return rising numbers as sbatch reads them: ``0,3-5``."""
    runs = itertools.groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])
    ends = [(own[0][1], own[-1][1]) for own in (list(run) for _, run in runs)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _setup(submission: Submission, resources: Resources) -> list[str]:
    """Return the shell lines before the job's own process: the user's, then where it finds the code."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in resources.env.items()]
    return [
        f"{BEGAN}=$(date +%s)",
        f"export {BEGAN}",
        *resources.setup,
        *exports,
        # The user's lines may have gone elsewhere, and what runs is what lies in this folder: Python looks
        # there first, unless it is told not to. A search path would be cut at a colon in the folder's name.
        f"cd {shlex.quote(submission.snapshot)} || exit 1",
        "unset PYTHONSAFEPATH",
        # Ranks that are told to stop save; until they have, this script is not to end.
        "trap '' USR1 USR2 TERM",
    ]


def _python(resources: Resources) -> str:
    return shlex.quote(resources.python or sys.executable)


def batch_text(submission: Submission, resources: Resources, file: Path, dependency: str = "") -> str:
    """Return the batch script that :func:`submit` would hand to sbatch, with nothing done."""
    from submitit.slurm.slurm import _make_sbatch_string

    count = len(submission.members)
    return _make_sbatch_string(
        command=f"{_python(resources)} -u -m submitit.core._submit {shlex.quote(str(file.parent))}",
        folder=file.parent,
        map_count=count if count > 1 else None,
        **parameters(submission, resources, dependency),
    )


def submit(
    submission: Submission, resources: Resources, file: Path, *, journal: Journal, dependency: str = ""
) -> list[str]:
    """Submit and return the job ids of the members, in order.

    Args:
        submission: What to run; written to ``file`` first.
        resources: What each member asks for.
        file: Where the submission is written; pickles and logs go to its folder.
        journal: Told before and after, so that a crash in between leaves a trace.
        dependency: Slurm's words for what to wait for.

    Raises:
        QueueFull: If its user has as many jobs in the queue as they may.
        NoAnswer: If it cannot be told whether Slurm took it; the next submission of the journal's folder
            looks again.
        UserError: If Slurm refuses it; nothing of it is then left in the queue.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    check_path(file.parent)
    # A launcher that was killed may have left jobs that no journal names, and that may lack their pickles.
    for token in journal.unanswered():
        cancel_by_token(token)
    submission = dataclasses.replace(
        submission,
        nodes=resources.nodes,
        spare_nodes=resources.spare_nodes,
        tasks=resources.tasks,
        cores=resources.cpus_per_task,
        srun_args=resources.srun_args,
        silence_s=resources.silence_s,
        signal_delay_s=resources.signal_delay_s,
        notify=resources.notify,
    )
    submission = on_the_nodes(submission, resources, file.parent)
    submission.write(file)
    # An array makes an executor of its own, so it has to be told to the class.
    submitit.SlurmExecutor._get_job_id_from_submission_command = staticmethod(job_of)  # type: ignore[assignment]
    executor = submitit.SlurmExecutor(folder=file.parent, python=_python(resources))
    executor.update_parameters(**parameters(submission, resources, dependency))
    commands = [JobCommand(str(file)) for _ in submission.members]
    journal.note("submitting", submission)
    for attempt in itertools.count(1):
        try:
            # submitit prints what sbatch said before it raises it.
            with outside_of_any_job(), contextlib.redirect_stderr(io.StringIO()):
                ids = [str(job.job_id) for job in executor.submit_array(commands)]
            if attempt > 1:
                # What an earlier try said may have been heard only now.
                cancel_by_token(submission.token, but=ids)
            break
        except (FailedJobError, FailedSubmissionError) as error:
            # A time-out does not say whether the job was accepted: it must not run twice.
            cancel_by_token(submission.token)
            said = " ".join(str(error).split())
            busy = BUSY.search(said) is not None
            if attempt < TRIES and busy:
                journal.note("retrying", submission, error=said)
                pause(attempt)
                # A busy controller may have taken the job after it was looked for.
                cancel_by_token(submission.token)
                continue
            journal.note("unheard" if busy else "refused", submission, error=said)
            if full := _FULL.search(said):
                raise QueueFull(
                    f"sbatch refused {submission.stage}: you may have no more jobs in the queue ({full[0]})",
                    mend="say it again once some have ended",
                ) from error
            raise UserError(
                f"sbatch refused {submission.stage}: {said}", mend="the script: --dry-run"
            ) from error
        except BaseException:
            # Ctrl-C, say, between Slurm's yes and our hearing it.
            cancel_by_token(submission.token)
            journal.note("interrupted", submission)
            raise
    if submission.indices:
        ids = _renumbered(ids, submission.indices, file.parent)
    journal.note("submitted", submission, jobs=ids)
    return ids


def on_the_nodes(submission: Submission, resources: Resources, logs: Path) -> Submission:
    """Return a submission whose commands are those of the nodes: their interpreter, their container."""
    if resources.python:
        members = (
            dataclasses.replace(member, argv=(resources.python, *member.argv[1:]))
            if member.argv[0] == sys.executable
            else member
            for member in submission.members
        )
        submission = dataclasses.replace(submission, members=tuple(members))
    return container.enter(submission, own, logs) if (own := resources.in_container) else submission


def _renumbered(ids: list[str], indices: Sequence[int], folder: Path) -> list[str]:
    """Give the pickles, which submitit numbers from 0, the numbers of their elements; return the ids.

    A job that has begun waits for its pickle.
    """
    array = ids[0].partition("_")[0]
    numbered = [f"{array}_{index}" for index in indices]
    # No number is below its place, so from the end none meets one that has still to go.
    for before, now in reversed(list(zip(ids, numbered, strict=True))):
        if before != now:
            (folder / f"{before}_submitted.pkl").replace(folder / f"{now}_submitted.pkl")
    return numbered


def job_of(said: str | bytes) -> str:
    """Return the job id in what sbatch said: a site may have it say more, also of other jobs.

    Raises:
        FailedSubmissionError: If there is none.
    """
    from submitit.core.utils import FailedSubmissionError

    text = said if isinstance(said, str) else said.decode(errors="replace")
    found = re.findall(r"^Submitted batch job (\d+)\b", text, re.MULTILINE)
    if len(found) != 1:
        raise FailedSubmissionError(f"sbatch named {len(found)} jobs: {text}")
    job: str = found[0]
    return job


def check_path(folder: Path) -> None:
    """Check that Slurm can be told to write into ``folder``.

    Raises:
        UserError: If the path holds what Slurm reads as something else.
    """
    for character, meaning in (("%", "a job's number"), ("\\", "an escape"), ("\n", "the end of a line")):
        if character in str(folder):
            raise UserError(
                f"{folder}: Slurm reads {character!r} in a path as {meaning}", mend="choose another folder"
            )


@contextlib.contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Hide what a surrounding job put into the environment: a job submitted from it would inherit it.

    SLURM_CONF stays, which says where the cluster is, and so do a user's own SBATCH_* where there is
    no job around.
    """
    job = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_") if "SLURM_JOB_ID" in os.environ else ()
    hidden = [name for name in os.environ if name.startswith(job) or name in _RANK_VARIABLES]
    before = {name: os.environ.pop(name) for name in hidden if name != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(before)
