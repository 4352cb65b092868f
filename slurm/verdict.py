"""What becomes of a job after an attempt: done, again on these nodes, back into the queue, or failed.

Told from srun's exit status, the records that its ranks left (:mod:`slurm.job`) and what rank 0 wrote.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple

from slurm.job import rank_records
from slurm.members import Member

DONE, RETRY, REQUEUE, FAILED = "done", "retry", "requeue", "failed"
# How often the ranks of one attempt look for another place to meet.
RENDEZVOUS_TRIES = 5
_PORT_TAKEN = (b"EADDRINUSE", b"ddress already in use")
_TAIL_BYTES = 20_000


class Verdict(NamedTuple):
    """What becomes of a job after an attempt.

    Attributes:
        outcome: ``done``, ``retry`` (here and now), ``requeue`` or ``failed``.
        reason: Why, as a phrase.
    """

    outcome: str
    reason: str


class Rendezvous(NamedTuple):
    """Where the ranks of an attempt were told to meet.

    Attributes:
        tries: How often they have been told so far, this time included.
        fixed: Whether the port is one that the user named.
        log_bytes: How long rank 0's log was before.
    """

    tries: int = 1
    fixed: bool = False
    log_bytes: int = 0


def judge(
    member: Member, folder: Path, status: int, *, world: int, log: Path, rendezvous: Rendezvous
) -> Verdict:
    """Decide what becomes of a job.

    Args:
        member: What it ran.
        folder: The records of its ranks in this attempt.
        status: srun's exit status.
        world: Number of ranks.
        log: Rank 0's log, of all attempts.
        rendezvous: Where the ranks were told to meet.
    """
    ranks = rank_records(folder)
    stops = {one["stop_signal"] for one in ranks if one["stop_signal"] is not None}
    complete = member.done is None or Path(member.done).exists()
    if status == 0 and complete and not (stops and member.done is None):
        return Verdict(DONE, "complete")
    lost = sorted(set(range(world)) - {int(str(one["rank"])) for one in ranks})
    if lost:
        return Verdict(REQUEUE, f"lost rank {', '.join(map(str, lost))}")
    if stops:
        return Verdict(REQUEUE, f"stopped by {signal.Signals(int(str(min(stops, key=str)))).name}")
    killed = [one for one in ranks if one["status"] in (-signal.SIGKILL, -signal.SIGBUS)]
    if killed:
        return Verdict(REQUEUE, f"rank {killed[0]['rank']} was killed on {killed[0]['host']}")
    if member.distributed and _port_was_taken(log, rendezvous.log_bytes):
        again = not rendezvous.fixed and rendezvous.tries < RENDEZVOUS_TRIES
        return Verdict(
            RETRY if again else REQUEUE,
            f"the rendezvous port was taken by another program (try {rendezvous.tries})",
        )
    if status == 0:
        return Verdict(FAILED, f"ended without {member.done}")
    return Verdict(FAILED, f"exit status {status}")


def _port_was_taken(log: Path, start: int) -> bool:
    """Whether rank 0 could not listen: words of it after the first ``start`` bytes of its log."""
    if not log.is_file():
        return False
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
        last = file.read()
    return any(words in last for words in _PORT_TAKEN)
