"""What becomes of a job after a round of its ranks: told from how they ended and from who fell silent.

A rank that ended has a status and last words, a node that is gone hung up or fell silent, a frozen rank gave
no sign of life and did no work. What none of that was said of is not guessed at.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from slurm.members import Member

# Again at another port, again from the newest checkpoint, back into the queue: the first two here and now.
DONE, RETRY, RESTART, REQUEUE, FAILED = "done", "retry", "restart", "requeue", "failed"
# Lines that a rank writes because another one died: the cause is to be found elsewhere.
ECHO = re.compile(r"Connection (closed|reset|refused)|gloo|NCCL|c10d|TCPStore|SIGTERM", re.IGNORECASE)
_PORT_TAKEN = re.compile("EADDRINUSE|address already in use", re.IGNORECASE)
# By the warden of a rank that did not end after it had failed (nml.lifeline).
_KILLED_AFTER_FAILURE = "failed, and had not ended"
_ECHO_LINES = 3
_WORDS = 300


class Verdict(NamedTuple):
    """What becomes of a job.

    Attributes:
        outcome: ``done``, ``retry``, ``restart``, ``requeue`` or ``failed``.
        reason: Why, as a phrase.
        nodes: The nodes at fault.
    """

    outcome: str
    reason: str
    nodes: tuple[str, ...] = ()


class Exit(NamedTuple):
    """How a rank has ended: its node, exit status (-n: by signal n) and last words."""

    rank: int
    node: str
    status: int
    words: str

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it: by kill -9, or the kernel for want of memory."""
        # SIGBUS: in a file that it maps.
        by_another = self.status in (-signal.SIGKILL, -signal.SIGBUS)
        return by_another and _KILLED_AFTER_FAILURE not in self.words

    def __str__(self) -> str:
        how = f"exit status {self.status if self.status >= 0 else 128 - self.status}"
        last = self.words.strip().rpartition("\n")[2].strip()[-_WORDS:]
        return f"rank {self.rank} on {self.node}: {how}{last and ': '}{last}"


@dataclasses.dataclass
class Seen:
    """What was seen of a round.

    Attributes:
        world: Number of ranks.
        exits: How ranks have ended, by rank, in the order in which it was heard.
        lost: Why a node is gone, by its name.
        frozen: Where a rank is frozen and since when, as a phrase, by rank.
        hung: Why all stand still, as a phrase, and the node of the rank that is waited for, if it is known.
        stops: The stop signals that agents got.
    """

    world: int
    exits: dict[int, Exit] = dataclasses.field(default_factory=dict)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)
    frozen: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    hung: tuple[str, tuple[str, ...]] | None = None
    stops: list[int] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> list[Exit]:
        """Ranks that did not end well."""
        return [one for one in self.exits.values() if one.status]


def judge(member: Member, seen: Seen) -> Verdict:
    """Decide what becomes of a job whose round is over."""
    failed = seen.failed
    marked = member.done is not None and Path(member.done).exists()
    well = not (failed or seen.frozen or seen.hung)
    if well and (marked or (member.done is None and not seen.stops and len(seen.exits) == seen.world)):
        return Verdict(DONE, "complete")
    if seen.stops:
        return Verdict(REQUEUE, f"stopped by {signal.Signals(seen.stops[0]).name}")
    if failed and all(one.status == os.EX_TEMPFAIL for one in failed):
        return Verdict(REQUEUE, "told to stop, and saved")
    if seen.lost:
        node, why = next(iter(seen.lost.items()))
        return Verdict(RESTART, f"lost node {node}: {why}", tuple(seen.lost))
    if killed := next((one for one in failed if one.killed), None):
        how = f"rank {killed.rank} was killed on {killed.node} ({signal.Signals(-killed.status).name})"
        return Verdict(RESTART, how, (killed.node,))
    if seen.frozen:
        rank, (node, why) = next(iter(seen.frozen.items()))
        return Verdict(RESTART, f"rank {rank} was frozen on {node}: {why}", (node,))
    if seen.hung:
        return Verdict(RESTART, *seen.hung)
    if member.distributed and any(_PORT_TAKEN.search(one.words) for one in failed):
        return Verdict(RETRY, "the rendezvous port was taken by another program")
    if failed:
        return Verdict(FAILED, str(cause(failed)))
    return Verdict(FAILED, f"ended without {member.done}")


def cause(failed: Iterable[Exit]) -> Exit:
    """Return the first that failed by itself, not because another did; the first where none can be told."""
    ended = list(failed)
    return next((one for one in ended if not _is_echo(one)), ended[0])


def _is_echo(one: Exit) -> bool:
    last = one.words.strip().splitlines()[-_ECHO_LINES:]
    return any(ECHO.search(line) for line in last)
