"""The way back into the queue: asked for until Slurm grants or refuses it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection

from slurm.controller import BUSY, answer
from slurm.members import own_job
from slurm.words import say

# The next time a controller that does not answer is asked.
RETRY_SECONDS = float(os.environ.get("NML_REQUEUE_RETRY_SECONDS", "10"))
_ANSWER_SECONDS = 120
# A job in another state was cancelled, or is on its way back already.
_REQUEUE_FROM = ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
_COMES_BACK = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


def requeue(without: Collection[str] = ()) -> str:
    """Ask Slurm to run the job again until it answers; return why it will not, or nothing.

    Args:
        without: Nodes to leave out then, where the partition has enough others.
    """
    job, own = own_job(), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    while True:
        shown = scontrol("show", "job", job, "--oneliner")
        state = _field("JobState", shown.stdout)
        # Whoever was cut off may come when the next attempt runs already.
        if state in _COMES_BACK or int(_field("Restarts", shown.stdout) or 0) > own:
            return ""
        if state and state not in _REQUEUE_FROM:
            return f"the job is {state}, so it is left alone"
        done = scontrol("requeue", job) if state else shown
        if done.returncode == 0 and state:
            if without:
                _leave_out(job, without, shown.stdout)
            return ""
        said = " ".join((done.stderr or done.stdout).split())
        if not BUSY.search(said):
            return f"requeue refused: {said}"
        say(f"the requeue is asked for again in {RETRY_SECONDS:.0f} s: {said}")
        time.sleep(RETRY_SECONDS)


def _leave_out(job: str, nodes: Collection[str], shown: str) -> None:
    """Have the job start on other nodes; it is no failure where that comes too late."""
    before = _field("ExcNodeList", shown)
    wanted = int(_field("NumNodes", shown).partition("-")[0] or 1)
    before = "" if before == "(null)" else before
    out = set(scontrol("show", "hostnames", before).stdout.split()) if before else set()
    partition = f"--partition={_field('Partition', shown)}"
    argv = ["sinfo", "--noheader", "--Node", "--format=%N %T", partition]
    listed = answer(argv, seconds=_ANSWER_SECONDS).stdout
    usable = {line.split()[0] for line in listed.splitlines() if not re.search("down|drain|fail|maint", line)}
    if len(usable - out - set(nodes)) < wanted:
        say(f"{', '.join(nodes)} cannot be left out: the partition has no other nodes")
        return
    excluded = ",".join([*filter(None, [before]), *sorted(set(nodes) - out)])
    scontrol("update", f"JobId={job}", f"ExcNodeList={excluded}")


def _field(name: str, shown: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", shown)
    return found[1] if found else ""


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Return what scontrol answers, also where it does not run."""
    return answer(["scontrol", *words], seconds=_ANSWER_SECONDS)
