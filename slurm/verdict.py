"""What becomes of a job after a round of its ranks: told from how they ended and from who fell silent.

A rank that ended has a status and last words, a node that is gone hung up or fell silent, a frozen rank gave
no sign of life and did no work. What none of that was said of is not guessed at.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slurm.members import Member

# Again at another port, again from the newest checkpoint, back into the queue: the first two here and now.
DONE, RETRY, RESTART, REQUEUE, FAILED = "done", "retry", "restart", "requeue", "failed"
# After the submission's silence and so many steps without a sign of life a rank is frozen.
FROZEN_STEPS = 3
# Without a step for so many times that silence, and so many steps, all hang that beat.
HUNG_SILENCES, HUNG_STEPS = 10.0, 30
# What a rank does that waits for others, and what may take as long as their storage does.
_WAITING, _READING = ("waiting", "meeting the others"), "reading data"
# Lines that a rank writes because another one died: the cause is to be found elsewhere.
ECHO = re.compile(r"Connection (closed|reset|refused)|gloo|NCCL|c10d|TCPStore|SIGTERM", re.IGNORECASE)
_PORT_TAKEN = re.compile("EADDRINUSE|address already in use", re.IGNORECASE)
# By the warden of a rank that did not end after it had failed (nml.lifeline).
_KILLED_AFTER_FAILURE = "failed, and had not ended"
_ECHO_LINES = 3
# Written by the C++ library where nothing catches an exception, as in a thread of torch's.
_MESSAGE = "what():"
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


class Beat(NamedTuple):
    """How a rank is, as its agent says.

    Attributes:
        rank, node: Which, and where.
        pace: The usual seconds of its steps, 0 as long as that is not known.
        phase: What it does.
        quiet: For how many seconds it has given no sign of life.
        still: For how many it has made no step; before there are any, done no work.
    """

    rank: int
    node: str
    pace: float
    phase: str
    quiet: float
    still: float

    @classmethod
    def read(cls, node: str, told: dict[str, Any]) -> Beat:
        """Return what an agent has told of one of its ranks.

        Raises:
            ValueError, KeyError, TypeError: If that is nothing which an agent tells.
        """
        pace, quiet, still = (float(told[name]) for name in ("pace", "quiet", "still"))
        return cls(int(told["rank"]), node, pace, str(told["phase"]), quiet, still)


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

    @property
    def told(self) -> list[str]:
        """What it said of its end: all, or the message of an exception in C++ without its frames."""
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        return [line for line in lines if line.startswith(_MESSAGE)] or lines

    def __str__(self) -> str:
        how = f"exit status {self.status if self.status >= 0 else 128 - self.status}"
        last = "".join(self.told[-1:])[-_WORDS:]
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


def frozen(beats: Iterable[Beat], silence: float) -> dict[int, tuple[str, str]]:
    """Return the ranks that are frozen, as in :class:`Seen`.

    Args:
        beats: Of all ranks that run.
        silence: For how long, and some steps, a rank may give no sign of life, in seconds.
    """
    found = list(beats)
    limit = silence + FROZEN_STEPS * max((beat.pace for beat in found), default=0.0)
    return {
        beat.rank: (beat.node, f"no sign of life for {beat.quiet:.0f} s ({beat.phase})")
        for beat in found
        if beat.quiet > limit
    }


def hung(beats: Sequence[Beat], silence: float) -> tuple[str, tuple[str, ...]] | None:
    """Return why all ranks stand still that give signs of life, as in :class:`Seen`, or None if they do not.

    Args:
        beats: Of all ranks that run.
        silence: See :func:`frozen`; a multiple of it is the time that they have.
    """
    still = min((beat.still for beat in beats), default=0.0)
    limit = max(HUNG_SILENCES * silence, HUNG_STEPS * max((beat.pace for beat in beats), default=0.0))
    if still < limit or all(beat.phase == _READING for beat in beats):
        return None
    awaited = [beat for beat in beats if beat.phase not in _WAITING]
    if len(awaited) == 1:
        [one] = awaited
        return f"no step for {still:.0f} s: rank {one.rank} hangs on {one.node} ({one.phase})", (one.node,)
    doing = ", ".join(sorted({beat.phase for beat in beats}))
    return f"no step for {still:.0f} s: which rank the others wait for is not known ({doing})", ()


def cause(failed: Iterable[Exit]) -> Exit:
    """Return the first that failed by itself, not because another did; the first where none can be told."""
    ended = list(failed)
    return next((one for one in ended if not _is_echo(one)), ended[0])


def _is_echo(one: Exit) -> bool:
    return any(ECHO.search(line) for line in one.told[-_ECHO_LINES:])
