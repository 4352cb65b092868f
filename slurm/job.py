"""What Slurm runs of a job, once, in its batch step: one attempt, from its beginning to its end.

submitit pickles a :class:`JobCommand`, which is one plain value. It is imported from the snapshot on the
job's first node, and replaces submitit's own handler of signals, which would requeue by itself. There is
one owner of the question "again, or not?", and it is here: a job comes back after a stop (preemption, time
limit) and after a loss that its nodes could not make good, and fails honestly after a failure of its program,
so that what depends on it does not start. Starts that bring no new checkpoint are counted, and bounded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from slurm.attempt import Attempt
from slurm.container import srun_words
from slurm.coordinator import MOST_FAILURES, Coordinator
from slurm.ending import tell_end
from slurm.members import Submission
from slurm.ranks import STOP_SIGNALS
from slurm.receipts import write_receipts
from slurm.rendezvous import node_address
from slurm.requeue import requeue, scontrol
from slurm.snapshot import check_snapshot
from slurm.verdict import DONE, FAILED, REQUEUE, Exit, Verdict

KILL_SECONDS = 300
# Of the ranks at fault, in the record of an attempt.
_MOST_RANKS = 16


class JobCommand:
    """One member of a submission, as a job.

    Args:
        submission: The file of the :class:`~slurm.members.Submission`.
    """

    def __init__(self, submission: str) -> None:
        self.submission = submission

    def __call__(self) -> None:
        """Run the job; end with its exit status."""
        # Agents tell of stops. srun inherits this: it would kill ranks that save.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        file = Path(self.submission)
        try:
            # It does not return where the job comes back.
            status = run_job(file)
        finally:
            _tell_end(file)
        sys.exit(status)


def _tell_end(file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        submission = Submission.read(file)
        if sweep := submission.own_member().ends:
            tell_end(Path(sweep), submission.notify)


def run_job(file: Path) -> int:
    """Run the running job's member of a submission, and have the job come back if it shall.

    Returns:
        The exit status of the batch script.
    """
    submission = Submission.read(file)
    member = submission.own_member()
    attempt = Attempt(member)
    names = _nodes()
    attempt.open(names[0], spare=submission.spare_nodes)
    failures = attempt.failures()
    ended: list[Exit] = []
    try:
        refusal = _refusal(submission, attempt, names)
        verdict = refusal or _run(submission, file, attempt, names, failures, ended)
        if verdict.outcome == DONE and member.probe:
            write_receipts(member.probe)
    except Exception as error:
        attempt.close(FAILED, f"{type(error).__name__}: {error}", 1)
        raise
    status = 0 if verdict.outcome == DONE else _status(ended)
    # Before the requeue: once Slurm has it, this process may be killed at any moment.
    attempt.close(*verdict[:2], status, ended)
    if verdict.outcome == REQUEUE:
        refused = requeue([name for name, count in failures.items() if count >= MOST_FAILURES])
        if not refused:
            # Slurm ends the batch script; ending by itself, it would look like the end of the job.
            time.sleep(KILL_SECONDS)
            refused = f"the requeue was granted, and Slurm did not end the script in {KILL_SECONDS} s"
        attempt.close(FAILED, f"{verdict.reason}; {refused}", status, ended)
    return status


def _run(
    submission: Submission,
    file: Path,
    attempt: Attempt,
    names: list[str],
    failures: dict[str, int],
    ended: list[Exit],
) -> Verdict:
    def restart(verdict: Verdict) -> str:
        attempt.restart(verdict.reason, verdict.nodes)
        return _given_up(submission, attempt, f"; the last time, {verdict.reason}")

    coordinator = Coordinator(
        submission,
        attempt.member,
        names=names,
        failures=failures,
        address=node_address(names[0]),
        restarts=restart,
        tell_stalls=attempt.stall,
    )
    verdict = coordinator.run(agents_command(submission, file, len(names)))
    ended += coordinator.failed_ranks[:_MOST_RANKS]
    return verdict


def agents_command(submission: Submission, file: Path, nodes: int) -> list[str]:
    """Return the command that starts an agent on each node of the job."""
    inside = srun_words(submission.container, submission.snapshot)
    python = submission.container.python if submission.container and inside else sys.executable
    return [
        # The environment of this job is the one to run in, whatever SBATCH_EXPORT said.
        *("srun", "--unbuffered", "--export=ALL", "--kill-on-bad-exit=0", "--no-kill", "--wait=0"),
        *(f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        f"--cpus-per-task={submission.tasks * submission.cores}",
        *inside,
        *submission.srun_args,
        *(python, "-u", "-m", "slurm.agent", str(file)),
    ]


def _refusal(submission: Submission, attempt: Attempt, names: list[str]) -> Verdict | None:
    """Return why the job must not begin, or nothing."""
    missing = [program for program in ("srun", "scontrol") if shutil.which(program) is None]
    if missing:
        node, path = os.uname().nodename, os.environ.get("PATH", "")
        return Verdict(FAILED, f"{' and '.join(missing)} not on the PATH of {node}: {path}")
    try:
        check_snapshot(Path(submission.snapshot))
    except RuntimeError as error:
        return Verdict(FAILED, str(error))
    if given_up := _given_up(submission, attempt, ""):
        return Verdict(FAILED, given_up)
    if len(names) < submission.nodes:
        known = f"{len(names)} of its {submission.nodes} nodes"
        return Verdict(REQUEUE, f"scontrol on {os.uname().nodename} names {known}: {', '.join(names)}")
    return None


def _given_up(submission: Submission, attempt: Attempt, last: str) -> str:
    """Return why the ranks must not start once more, or nothing."""
    # The start that is asked for is counted already.
    if (idle := attempt.idle_starts() - 1) < submission.max_idle_attempts:
        return ""
    return f"given up after {idle} attempts in a row without a new checkpoint (step {attempt.step}){last}"


def _nodes() -> list[str]:
    """Return the nodes of the job, in its order; the batch step is on the first one."""
    listed = scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).stdout.split()
    return listed or [os.environ.get("SLURMD_NODENAME", "")]


def _status(ended: list[Exit]) -> int:
    status = ended[0].status if ended else 1
    return status if status > 0 else 128 - status if status else 1
