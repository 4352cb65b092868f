"""What became of the time of a run: seconds that trained, and lost ones by cause."""

from __future__ import annotations

import heapq
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pretrain.stragglers import Division, divide

# Time that trains nothing, by cause. ``data_wait`` is that of the slowest rank of each step, ``waiting`` that
# for a rank which stood still or computed longer than others, ``left_out`` steps that were not finite,
# ``redone`` work since the last checkpoint before a crash, ``down`` the time between attempts, ``other`` what
# nobody claims, such as writing these lines.
CAUSES = (
    "startup",
    "data_wait",
    "waiting",
    "validation",
    "checkpoint",
    "left_out",
    "redone",
    "down",
    "other",
)
# Ranks of a cause that a line names: those that cost most.
_NAMED = 3


class Ledger:
    """Seconds since the run began, divided into useful ones and lost ones by cause; none is left out.

    Args:
        started: When this attempt began, by time.perf_counter().

    Attributes:
        useful: Seconds of training that counted.
        lost: Seconds by cause.
        hosts: The host of each rank.
    """

    def __init__(self, started: float) -> None:
        self.useful = 0.0
        self.lost = dict.fromkeys(CAUSES, 0.0)
        self.hosts = [socket.gethostname()]
        # By cause, rank and host: whom the run waited for.
        self._waited_for: dict[tuple[str, int, str], float] = {}
        # What was booked since the step before the last began, and when the last was.
        self._recent: dict[str, float] = {}
        self._stepped = started
        self._started = started
        self._before = 0.0

    @contextmanager
    def losing(self, cause: str, *, since_start: bool = False) -> Iterator[None]:
        """Book the time inside the block as lost, or all since the attempt began."""
        start = self._started if since_start else time.perf_counter()
        try:
            yield
        finally:
            self._lose(cause, time.perf_counter() - start)

    def _lose(self, cause: str, seconds: float) -> None:
        self.lost[cause] += seconds
        self._recent[cause] = self._recent.get(cause, 0.0) + seconds

    def step(self, seconds: float, ranks: np.ndarray, *, applied: bool = True) -> Division:
        """Book a step, waiting for its batch included, as the slowest rank divides it; return how.

        What a rank stood still before the step is part of the waiting that is returned.

        Args:
            seconds: How long it took on this rank.
            ranks: Since the step before, a :class:`pretrain.stragglers.OwnTime` a row.
            applied: Whether the weights were updated; else it was of no use.
        """
        division = divide(seconds, ranks)
        late = self._take_back(division, seconds)
        self._recent = {}
        if applied:
            self.useful += division.useful
            self._recent["useful"] = division.useful
        else:
            self._lose("left_out", division.useful)
        self._wait_for(division.rank, "data_wait", division.data_wait)
        self._wait_for(division.rank, "waiting", division.waiting)
        self._stepped = time.perf_counter()
        return division._replace(waiting=division.waiting + late)

    def _take_back(self, division: Division, seconds: float) -> float:
        """Book as waiting what a rank stood still before the step, which was booked as something else."""
        causes = ("useful", "left_out", "validation", "checkpoint")
        recent = {cause: self._recent.get(cause, 0.0) for cause in causes}
        since = time.perf_counter() - self._stepped - seconds
        claimed = sum(self._recent.get(cause, 0.0) for cause in ("startup", "validation", "checkpoint"))
        recent["other"] = since - claimed
        late = division.late
        for cause, booked in sorted(recent.items(), key=lambda item: -item[1]):
            moved = max(0.0, min(late, booked))
            late -= moved
            if cause == "useful":
                self.useful -= moved
            elif cause != "other":
                self.lost[cause] -= moved
            self._wait_for(division.rank, "waiting", moved)
        return division.late - late

    def _wait_for(self, rank: int, cause: str, seconds: float) -> None:
        if seconds:
            self._lose(cause, seconds)
            key = (cause, rank, self.hosts[rank])
            self._waited_for[key] = self._waited_for.get(key, 0.0) + seconds

    @property
    def wall(self) -> float:
        """Seconds since the run began, those between its attempts included."""
        return self._before + time.perf_counter() - self._started

    @property
    def goodput(self) -> float:
        """Useful time over all time, 0 to 1."""
        return self.useful / self.wall

    def as_json(self) -> dict[str, Any]:
        """Return the record that every line carries."""
        wall = self.wall
        claimed = sum(seconds for cause, seconds in self.lost.items() if cause != "other")
        self.lost["other"] = max(0.0, wall - self.useful - claimed)
        return {
            "goodput": round(self.useful / wall, 4),
            "useful_s": round(self.useful, 3),
            "lost_s": {cause: round(seconds, 3) for cause, seconds in self.lost.items()},
            "waited_for": [
                {"cause": cause, "rank": rank, "host": host, "s": round(seconds, 3)}
                for cause in ("data_wait", "waiting")
                for rank, host, seconds in self._worst(cause)
            ],
        }

    def _worst(self, cause: str) -> list[tuple[int, str, float]]:
        """Return the ranks that cost most, with their hosts and seconds."""
        found = [
            (rank, host, seconds) for (of, rank, host), seconds in self._waited_for.items() if of == cause
        ]
        return heapq.nlargest(_NAMED, found, key=lambda item: item[2])

    def in_words(self) -> str:
        """Return goodput and the causes that cost a hundredth of the time or more, largest first."""
        books, wall = self.as_json(), self.wall
        causes = sorted(books["lost_s"].items(), key=lambda item: -item[1])
        named = [
            text
            for cause, seconds in causes
            if seconds > wall / 100
            for text in self._who(cause, seconds, wall / 100)
        ]
        return f"goodput {self.goodput:.2f}" + (f", lost to {', '.join(named)}" if named else "")

    def _who(self, cause: str, seconds: float, least: float) -> list[str]:
        """Return what a cause cost in words, divided by rank where one alone cost ``least`` seconds."""
        what, of = {"waiting": ("waiting", "for"), "data_wait": ("data wait", "of")}.get(cause, (cause, ""))
        ranks = [found for found in self._worst(cause) if found[2] > least]
        if not ranks or (len(self.hosts) == 1 and cause == "data_wait"):
            return [f"{what} {seconds:.1f} s"]
        words = [f"{what} {of} rank {rank} on {host} {cost:.1f} s" for rank, host, cost in ranks]
        rest = seconds - sum(cost for _, _, cost in ranks)
        return [*words, f"{what} {of} other ranks {rest:.1f} s"] if rest > least else words

    def resume(self, kept: dict[str, Any] | None, last: dict[str, Any]) -> None:
        """Take over from earlier attempts.

        Args:
            kept: The last line at or before the checkpoint; None if there is none.
            last: The last line of all.
        """
        if kept is not None:
            # Less in the last line where a later step took some of it back.
            self.useful = min(kept["useful_s"], last["useful_s"])
        self.lost.update(last["lost_s"])
        for found in last.get("waited_for", []):
            self._waited_for[found["cause"], found["rank"], found["host"]] = found["s"]
        self.lost["redone"] += last["useful_s"] - self.useful
        # Until this attempt began: from there on its own time counts.
        began = time.time() - (time.perf_counter() - self._started)
        self.lost["down"] += max(0.0, began - last["time"])
        self._before = self.useful + sum(self.lost.values())
