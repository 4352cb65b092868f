"""One attempt of a job, opened before srun and closed after it, by the batch script.

    read -r MASTER_ADDR MASTER_PORT <<< "$(python -m slurm.attempt open SUBMISSION)"
    srun ...
    python -m slurm.attempt close SUBMISSION $?

There is one owner of the question "again, or not?", and it is here: ranks only save, and this
requeues. A job comes back after a stop (preemption, time limit) and after a loss (a node died, a
rank was killed), and fails honestly, with srun's status, after a failure of its program: jobs that
depend on it must not start. Attempts that bring no new checkpoint are counted, and bounded.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from nml.files import write_json
from slurm.job import rank_records
from slurm.members import Member, Submission, own_attempt, own_index, own_job
from slurm.receipts import write_receipts
from slurm.rendezvous import choose_port, node_address

OPEN = "open.json"
CLOSE = "close.json"
KILL_SECONDS = 300
_STEP = re.compile(r"step-(\d+)")
# A job in another state was cancelled, or is on its way back already.
_REQUEUE_FROM = ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
_PORT_TAKEN = (b"EADDRINUSE", b"ddress already in use")


class Verdict(NamedTuple):
    """What becomes of a job after an attempt.

    Attributes:
        outcome: ``done``, ``requeue`` or ``failed``.
        reason: Why, as a phrase.
    """

    outcome: str
    reason: str


def newest_step(checkpoints: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 where there is none."""
    steps = [_STEP.fullmatch(marker.parent.name) for marker in checkpoints.glob("step-*/COMPLETE.json")]
    return max((int(step[1]) for step in steps if step), default=0)


def attempts(record: Path) -> list[dict[str, object]]:
    """Return the opening records of a member's attempts, oldest first."""
    opened = [json.loads(file.read_text()) for file in record.glob(f"*/{OPEN}")]
    return sorted(opened, key=lambda one: one["time"])


def open_attempt(submission: Submission) -> str:
    """Begin an attempt and return ``ADDRESS PORT``, where its ranks meet.

    Raises:
        RuntimeError: If too many attempts in a row brought no progress.
    """
    member = submission.members[own_index()]
    step = newest_step(Path(member.progress)) if member.progress else 0
    before = attempts(Path(member.record))
    idle = sum(1 for _ in _trailing(before, step))
    if idle >= submission.max_idle_attempts:
        raise RuntimeError(
            f"{member.name}: given up after {idle} attempts in a row without a new checkpoint (step {step}); "
            f"their logs are beside {submission.members[own_index()].record}"
        )
    node, address = _first_node()
    port = int(os.environ.get("MASTER_PORT") or choose_port(own_attempt()))
    write_json(
        Path(member.record) / own_attempt() / OPEN,
        {"job": own_job(), "attempt": own_attempt(), "node": node, "step": step, "time": time.time()},
    )
    return f"{address} {port}"


def _trailing(before: list[dict[str, object]], step: int) -> list[dict[str, object]]:
    """Return the newest attempts that all began at ``step``, of this job alone."""
    trailing = []
    for one in reversed(before):
        if one["step"] != step or one["job"] != own_job():
            break
        trailing.append(one)
    return trailing


def _first_node() -> tuple[str, str]:
    nodes = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    # The batch script runs on the first node, so its own name is as good.
    node = nodes[0] if nodes else os.environ.get("SLURMD_NODENAME", "")
    return node, node_address(node)


def close_attempt(submission: Submission, status: int, *, logs: Path) -> int:
    """End an attempt: requeue the job if it shall come back. Return the batch script's exit status."""
    member = submission.members[own_index()]
    folder = Path(member.record) / own_attempt()
    log = logs / f"{own_job()}_0_log.out"
    verdict = judge(member, folder, status, world=int(os.environ.get("SLURM_NTASKS") or 1), log=log)
    if verdict.outcome == "done" and member.probe:
        write_receipts(member.probe)
    # Before the requeue: once Slurm has it, this process may be killed at any moment.
    _record(member, verdict, status)
    if verdict.outcome == "requeue":
        refusal = _requeue()
        if not refusal:
            # Slurm ends the batch script; ending by itself, it would look like the end of the job.
            time.sleep(KILL_SECONDS)
        _record(member, Verdict("failed", f"{verdict.reason}; {refusal}"), status)
    return 0 if verdict.outcome == "done" else status or 1


def _record(member: Member, verdict: Verdict, status: int) -> None:
    step = newest_step(Path(member.progress)) if member.progress else 0
    write_json(
        Path(member.record) / own_attempt() / CLOSE,
        {**verdict._asdict(), "status": status, "step": step, "time": time.time()},
    )
    print(f"{member.name}: attempt {own_attempt()}: {verdict.outcome}: {verdict.reason}", flush=True)


def judge(member: Member, folder: Path, status: int, *, world: int, log: Path) -> Verdict:
    """Decide what becomes of a job from srun's status, its ranks' records and rank 0's log."""
    ranks = rank_records(folder)
    stops = {one["stop_signal"] for one in ranks if one["stop_signal"] is not None}
    complete = member.done is None or Path(member.done).exists()
    if status == 0 and complete and not (stops and member.done is None):
        return Verdict("done", "complete")
    lost = sorted(set(range(world)) - {int(str(one["rank"])) for one in ranks})
    if lost:
        return Verdict("requeue", f"lost rank {', '.join(map(str, lost))}")
    if stops:
        return Verdict("requeue", f"stopped by {signal.Signals(int(str(min(stops, key=str)))).name}")
    killed = [one for one in ranks if one["status"] in (-signal.SIGKILL, -signal.SIGBUS)]
    if killed:
        return Verdict("requeue", f"rank {killed[0]['rank']} was killed on {killed[0]['host']}")
    if _port_was_taken(log):
        return Verdict("requeue", "the rendezvous port was taken by another program")
    if status == 0:
        return Verdict("failed", f"ended without {member.done}")
    return Verdict("failed", f"exit status {status}")


def _port_was_taken(log: Path) -> bool:
    if not log.is_file():
        return False
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        last = file.read()
    return any(words in last for words in _PORT_TAKEN)


def _requeue() -> str:
    """Ask Slurm to run the job again; return why it will not, or nothing."""
    job = own_job()
    state = re.search(r"\bJobState=(\w+)", _scontrol("show", "job", job, "--oneliner").stdout)
    if state and state[1] not in _REQUEUE_FROM:
        return f"the job is {state[1]}, so it is left alone"
    done = _scontrol("requeue", job)
    return f"requeue refused: {done.stderr.strip()}" if done.returncode else ""


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", f"scontrol does not run here: {error}")


def main(argv: list[str]) -> int:
    """Run ``open SUBMISSION`` or ``close SUBMISSION STATUS``."""
    verb, file, *rest = argv
    submission = Submission.read(Path(file))
    if verb == "close":
        return close_attempt(submission, int(rest[0]), logs=Path(file).parent)
    try:
        print(open_attempt(submission))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
