"""One attempt of a job, opened before srun and closed after it, by the batch script.

    while true; do
      read -r MASTER_ADDR MASTER_PORT <<< "$(python -m slurm.attempt open SUBMISSION)"
      srun ...
      python -m slurm.attempt close SUBMISSION $?
      [ $? -eq 98 ] || break
    done

There is one owner of the question "again, or not?", and it is here: ranks only save, and this
requeues. A job comes back after a stop (preemption, time limit) and after a loss (a node died, a
rank was killed), and fails honestly, with srun's status, after a failure of its program: jobs that
depend on it must not start. Attempts that bring no new checkpoint are counted, and bounded.

Between the choice of a rendezvous port and its use another program may take it. That costs no
requeue: the ranks are started again on the same nodes, and told of another port.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from nml.files import write_json
from nml.layout import newest_step
from nml.untrusted import read_object
from slurm.job import clear_records
from slurm.members import Member, Submission, own_attempt, own_index, own_job
from slurm.receipts import write_receipts
from slurm.rendezvous import choose_port, node_address
from slurm.snapshot import check_snapshot
from slurm.verdict import DONE, FAILED, REQUEUE, RETRY, Rendezvous, Verdict, judge

OPEN = "open.json"
CLOSE = "close.json"
KILL_SECONDS = 300
RETRY_STATUS = errno.EADDRINUSE
# A job in another state was cancelled, or is on its way back already.
_REQUEUE_FROM = ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


def attempts(record: Path) -> list[dict[str, object]]:
    """Return the opening records of a member's attempts, oldest first."""
    opened = [read_object(file) for file in record.glob(f"*/{OPEN}")]
    return sorted(opened, key=lambda one: one["time"])


def open_attempt(submission: Submission, *, logs: Path) -> str:
    """Begin an attempt, or its next try, and return ``ADDRESS PORT``, where its ranks meet.

    Args:
        submission: What the job runs.
        logs: Folder of the ranks' logs.

    Raises:
        RuntimeError: If too many attempts in a row brought no progress.
    """
    member = submission.members[own_index()]
    folder = Path(member.record) / own_attempt()
    step = newest_step(Path(member.progress).parent) if member.progress else 0
    before = attempts(Path(member.record))
    earlier = read_rendezvous(folder)
    idle = sum(1 for _ in _trailing(before, step))
    if not earlier and idle >= submission.max_idle_attempts:
        raise RuntimeError(
            f"{member.name}: given up after {idle} attempts in a row without a new checkpoint (step {step}); "
            f"their logs are beside {submission.members[own_index()].record}"
        )
    tries = earlier.tries + 1 if earlier else 1
    # What a user fixed is there in the first try; later it is the port that was exported then.
    fixed = earlier.fixed if earlier else bool(os.environ.get("MASTER_PORT"))
    node, address = _first_node()
    port = int(os.environ["MASTER_PORT"]) if fixed else choose_port(f"{own_attempt()} {tries}")
    if earlier:
        clear_records(folder)
        (folder / CLOSE).unlink(missing_ok=True)
    log = _log_of_rank_0(logs)
    rendezvous = Rendezvous(tries, fixed, log.stat().st_size if log.exists() else 0)
    write_json(
        folder / OPEN,
        {
            "job": own_job(),
            "attempt": own_attempt(),
            "node": node,
            "port": port,
            "step": step,
            "time": time.time(),
            "rendezvous": rendezvous._asdict(),
        },
    )
    return f"{address} {port}"


def read_rendezvous(folder: Path) -> Rendezvous | None:
    """Return where the ranks of an attempt were told to meet, or None before they were."""
    try:
        return Rendezvous(**read_object(folder / OPEN, rendezvous=dict)["rendezvous"])
    except FileNotFoundError:
        return None


def _log_of_rank_0(logs: Path) -> Path:
    return logs / f"{own_job()}_0_log.out"


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
    """End an attempt: requeue the job if it shall come back.

    Returns:
        The batch script's exit status; :data:`RETRY_STATUS` has it start the ranks again.
    """
    member = submission.members[own_index()]
    folder = Path(member.record) / own_attempt()
    verdict = judge(
        member,
        folder,
        status,
        world=int(os.environ.get("SLURM_NTASKS") or 1),
        log=_log_of_rank_0(logs),
        rendezvous=read_rendezvous(folder) or Rendezvous(),
    )
    if verdict.outcome == DONE and member.probe:
        write_receipts(member.probe)
    # Before the requeue: once Slurm has it, this process may be killed at any moment.
    _record(member, verdict, status)
    if verdict.outcome == RETRY:
        return RETRY_STATUS
    if verdict.outcome == REQUEUE:
        refusal = _requeue()
        if not refusal:
            # Slurm ends the batch script; ending by itself, it would look like the end of the job.
            time.sleep(KILL_SECONDS)
        _record(member, Verdict(FAILED, f"{verdict.reason}; {refusal}"), status)
    if verdict.outcome == DONE:
        return 0
    return status if status not in (0, RETRY_STATUS) else 1


def _record(member: Member, verdict: Verdict, status: int) -> None:
    step = newest_step(Path(member.progress).parent) if member.progress else 0
    write_json(
        Path(member.record) / own_attempt() / CLOSE,
        {**verdict._asdict(), "status": status, "step": step, "time": time.time()},
    )
    print(f"{member.name}: attempt {own_attempt()}: {verdict.outcome}: {verdict.reason}", flush=True)


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
        check_snapshot(Path(submission.snapshot))
        print(open_attempt(submission, logs=Path(file).parent))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
