"""Signs of life: what a rank feels of its own standstills, and what rank 0 says while no step comes.

A thread of each rank ticks: ticks that did not come are time in which the process stood still. Another
tells the group's store now and then what the rank does. Rank 0 reads that only once no step has come for a
while, and says whom the run waits for. Only durations travel, so the clocks of the hosts need not agree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nml.lifeline import tell_agent
from pretrain import ending
from pretrain.world import World

# Seconds without a step before rank 0 says so: at least, in steps, and where one is not expected soon.
PATIENCE = 10.0
_PATIENT_STEPS = 10
LONG_PATIENCE = 60.0

_TICK = 0.2
# A shorter gap may be a busy machine.
_STANDSTILL = 0.5
# Beats a second that rank 0 hosts the store for, and the least time between those of one rank.
_BEATS_PER_S = 200
_BEAT = 1.0
# Below this share of the time, a thread that computes waits in fact.
_IDLE = 0.2
# What a rank does, as it is told. The first two keep a run from stepping for long, without fault.
VALIDATING, SAVING = "validating", "saving"
READING, WRITING, COMPUTING, WAITING = "reading data", "writing metrics", "computing", "waiting"


class ThreadWork:
    """Seconds that the thread which makes it has worked: it ran, or was ready to and got no core.

    Neither a thread that waits for another rank nor one of a stopped process works. May be called from any
    thread.
    """

    def __init__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def __call__(self) -> float:
        """Return the seconds so far."""
        queued = 0
        # Not every kernel counts it.
        with contextlib.suppress(OSError):
            queued = int(self._schedule.read_text().split()[1])
        return time.clock_gettime(self._clock) + queued / 1e9


class Pulse:
    """Notices when this process stood still: stopped by a signal or a frozen group, or hung in one call.

    Attributes:
        work: What the training thread has done.
        frozen: Seconds of standstill so far, exact to a fifth of a second for each.
    """

    def __init__(self) -> None:
        self.work = ThreadWork()
        self.frozen = 0.0
        self._lock = threading.Lock()
        self._last, self._worked = time.perf_counter(), self.work()

    def tick(self) -> None:
        """Be alive."""
        self.check()
        with self._lock:
            self._last, self._worked = time.perf_counter(), self.work()

    def check(self) -> None:
        """Count a standstill that has just ended, before the next tick does."""
        with self._lock:
            now, worked = time.perf_counter(), self.work()
            # A thread that computes may keep the ticks from coming.
            gap = now - self._last - _TICK - (worked - self._worked)
            if gap > _STANDSTILL:
                self.frozen += gap
                self._last, self._worked = now, worked


class Beat(NamedTuple):
    """What a rank told of itself last.

    Attributes:
        step: Steps that all ranks have agreed on.
        since: Seconds from the last one of them to the telling.
        busy: Whether the training thread worked.
        phase: What it does.
    """

    step: int
    since: float
    busy: bool
    phase: str


class Liveness:
    """The signs of life of this rank, and on rank 0 the watch over those of all.

    Args:
        world: This process.

    Attributes:
        pulse: Notices standstills of this process.
        hosts: The host of each rank, once started.
    """

    def __init__(self, world: World) -> None:
        self.pulse = Pulse()
        self.hosts = [socket.gethostname()]
        self._world = world
        self._interval = max(_BEAT, world.size / _BEATS_PER_S)
        self._silence = 3 * self._interval
        self._phase, self._steps = "starting", 0
        self._stepped = self._waiting_since = time.perf_counter()
        self._told = 0.0
        self._frozen_before = 0.0
        self._step_times: deque[float] = deque(maxlen=99)
        self._worked, self._looked, self._busy = 0.0, time.perf_counter(), True
        self._ended = threading.Event()
        self._store: Any = None

    def start(self) -> None:
        """Start to tick and to tell. Collective."""
        if self._world.size > 1:
            import torch.distributed as dist

            self.hosts = [""] * self._world.size
            dist.all_gather_object(self.hosts, socket.gethostname())
            # A connection of its own: the one of the group may be held by a call that waits.
            self._store = dist.PrefixStore("liveness", dist.distributed_c10d._get_default_store().clone())
        # Daemons: nothing that hangs in them may keep the process.
        for name, loop in (("pulse", self._tick), ("liveness", self._tell)):
            threading.Thread(target=loop, name=name, daemon=True).start()

    def stop(self) -> None:
        """Fall silent; does not wait for anything."""
        self._ended.set()
        tell_agent(phase="ending")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase inside the block."""
        before, self._phase = self._phase, name
        self._begin_waiting(name)
        try:
            yield
        finally:
            self._phase = before
            self._begin_waiting(name)

    def _begin_waiting(self, phase: str) -> None:
        if phase in (VALIDATING, SAVING):
            self._waiting_since, self._frozen_before = time.perf_counter(), self.pulse.frozen

    def stepped(self) -> None:
        """Note that all ranks have agreed on a step, just now."""
        now = time.perf_counter()
        if self._steps:
            self._step_times.append(now - self._waiting_since)
        self._stepped = self._waiting_since = now
        self._frozen_before = self.pulse.frozen
        self._steps += 1

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            self.pulse.tick()

    def _tell(self) -> None:
        from torch.distributed import DistError

        try:
            self._beat()
            while not self._ended.wait(self._interval) and not self._others_are_gone():
                self._beat()
                if self._world.is_main:
                    self._watch()
        except DistError:
            # The store is gone, and with it rank 0: there is nobody to tell.
            pass
        except Exception:
            # Whatever keeps it from talking is no reason to end a run that may go on.
            return
        # A rank that waits for the others finds out by itself; one that does not would never end.
        if not self._ended.wait(ending.CLOSING_SECONDS):
            ending.leave_stuck(self._world)

    def _beat(self) -> None:
        now, worked = time.perf_counter(), self.pulse.work()
        self._busy = worked - self._worked > _IDLE * (now - self._looked)
        self._worked, self._looked = worked, now
        if not self._ended.is_set():
            since = 0.0 if self._phase in (VALIDATING, SAVING) else self._waited()
            pace = statistics.median(self._step_times or [0.0])
            tell_agent(step=self._steps, since=since, pace=pace, phase=self._phase)
        if self._store is not None:
            told = f"{self._steps} {now - self._stepped:.1f} {self._busy:d} {self._phase}"
            self._store.set(str(self._world.rank), told)

    def _waited(self) -> float:
        """Return for how long a step, or the end of what comes between steps, has been waited for."""
        return time.perf_counter() - self._waiting_since - (self.pulse.frozen - self._frozen_before)

    def _patience(self) -> float:
        usual = _PATIENT_STEPS * statistics.median(self._step_times or [0.0])
        # A rank must have had the time to be silent for long enough.
        return max(PATIENCE, usual, self._silence + self._interval if self._store else 0.0)

    def _watch(self) -> None:
        """Say once of each standstill whom it waits for."""
        since, waited = self._waiting_since, self._waited()
        if waited < self._patience() or self._told == since:
            return
        beats, stall = self._beats(), time.perf_counter() - self._stepped
        expected = self._phase in (VALIDATING, SAVING) or not self._step_times
        if expected and waited < LONG_PATIENCE and not silent(stall, self._steps, beats, self._silence):
            return
        self._told = since
        reason = awaited(stall, self._steps, beats, self.hosts, self._silence)
        # Not through sys.stderr: a daemon that holds its lock would keep the interpreter from ending.
        os.write(2, f"no step for {stall:.0f} s: {reason}\n".encode())

    def _others_are_gone(self) -> bool:
        """Whether a rank has given no sign of life for so long that those that wait for it have given up."""
        limit, stall = self._world.timeout.total_seconds(), time.perf_counter() - self._stepped
        return (
            self._world.is_main and stall > limit and bool(silent(stall, self._steps, self._beats(), limit))
        )

    def _beats(self) -> list[Beat | None]:
        now = time.perf_counter()
        own = Beat(self._steps, now - self._stepped, self._busy, self._phase)
        beats: list[Beat | None] = [own] + [None] * (self._world.size - 1)
        for rank in range(1, self._world.size):
            # To ask for what is not there would wait for it.
            if self._store.check([str(rank)]):
                step, since, busy, phase = self._store.get(str(rank)).decode().split(" ", 3)
                beats[rank] = Beat(int(step), float(since), busy == "1", phase)
        return beats


def silent(stall: float, step: int, beats: list[Beat | None], silence: float) -> dict[int, float]:
    """Return the ranks but rank 0 that stand still, with the seconds since their last sign of life."""
    found = [stall if beat is None or beat.step < step else stall - beat.since for beat in beats]
    return {rank: seconds for rank, seconds in enumerate(found) if rank and seconds > silence}


def awaited(stall: float, step: int, beats: list[Beat | None], hosts: list[str], silence: float) -> str:
    """Say what a run that stands still waits for.

    Args:
        stall: Seconds since the last step.
        step: Steps that rank 0 has seen agreed on.
        beats: What each rank told last, rank 0 first; None for one that has told nothing.
        hosts: The host of each rank.
        silence: Seconds without a beat that a living rank does not reach.
    """
    own = beats[0]
    assert own is not None
    doing = own.phase if own.phase in (VALIDATING, SAVING) else ""
    frozen = silent(stall, step, beats, silence)
    if frozen:
        why = f"frozen: no sign of life for {max(frozen.values()):.0f} s"
        return f"{doing}{doing and ', '}waiting for {_names(list(frozen), hosts)} ({why})"
    if doing:
        return doing
    if len(beats) == 1:
        return "waiting for data" if own.phase == READING else own.phase
    for phase in (READING, WRITING, COMPUTING):
        found = [
            rank
            for rank, beat in enumerate(beats)
            if beat and beat.phase == phase and (beat.busy or phase != COMPUTING)
        ]
        if len(found) == len(beats):
            return f"all ranks {phase}"
        if found:
            return f"waiting for {_names(found, hosts)} ({phase})"
    return "every rank waits for the others: the network between them, or a device"


def _names(ranks: list[int], hosts: list[str]) -> str:
    more = f" and {len(ranks) - 1} more" if len(ranks) > 1 else ""
    return f"rank {ranks[0]} on {hosts[ranks[0]]}{more}"
