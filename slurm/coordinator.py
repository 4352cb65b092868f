"""The coordinator of a job, in its batch step: it starts the ranks, hears of them, and starts them again.

    batch step: coordinator  <-- TCP -->  agent on each node (slurm.agent)  <-- pipes -->  its ranks

A round is one life of all ranks. A lost or frozen rank ends it, and the next one begins inside the same
allocation: with the same ranks on the same slots, each slot on its node or, where that is lost or has failed
twice, on a spare one. What the coordinator cannot mend is left to the queue (:mod:`slurm.job`).
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slurm import wire
from slurm.controller import BUSY
from slurm.members import Member, Submission
from slurm.nodes import Nodes
from slurm.ranks import STOP_SIGNALS
from slurm.rendezvous import choose_port
from slurm.verdict import (
    FAILED,
    REQUEUE,
    RESTART,
    RETRY,
    Beat,
    Exit,
    Seen,
    Verdict,
    cause,
    frozen,
    hung,
    judge,
)
from slurm.words import say

# How long the nodes may take to start their agents, and spare ones longer than the rest.
START_SECONDS = 300.0
SPARE_SECONDS = 30.0
# A rank without a sign of life for so long is told of.
TOLD_SECONDS = 10.0
# What the ranks of a failed round may take to end by themselves, and to be killed.
GRACE_SECONDS, KILL_SECONDS = 5.0, 60.0
# For other ranks' words on the same failure.
SETTLE_SECONDS = 3.0
# For the others to save after a stop, where one of them cannot.
BROKEN_SECONDS = 30.0
# Before the time limit a job has to be on its way back, whether its ranks have saved or not.
_LEAD_SECONDS = 30.0
# Of a node in one job, after which it is left out.
MOST_FAILURES = 2
RENDEZVOUS_TRIES = 5
_SAID_BYTES = 20_000
_CAUSE_CHARACTERS = 300
# Said by srun of a node that died after it was allocated; another one may do.
_NODE_FAILED = re.compile(r"Communication \w+ failure|Message \w+ failure|Node failure on", re.IGNORECASE)
_TASK_FAILED = re.compile(r"srun: error: (\S+): tasks? [^:]*: (?:Exited|\w* ?\(?core|Terminated|Killed)")


class Coordinator:
    """Runs a member on the nodes of a job.

    Args:
        submission: What the job runs.
        member: Which of it.
        names: The nodes of the job, in its order.
        failures: How often each node has failed in this job before; counted on.
        address: By which the nodes reach this process.
        restarts: Called before each round but the first with why; returns why there must be none, or nothing.
        tell_stalls: Called with the ranks that give no sign of life: their node, for how long, and what they
            did last.

    Attributes:
        failed_ranks: The ranks that did not end well in the last round, the one at fault first.
    """

    def __init__(
        self,
        submission: Submission,
        member: Member,
        *,
        names: Sequence[str],
        failures: dict[str, int],
        address: str,
        restarts: Callable[[Verdict], str],
        tell_stalls: Callable[[Mapping[int, tuple[str, float, str]]], None],
    ) -> None:
        self._submission, self._member, self._names = submission, member, names
        self._failures, self._address = failures, address
        self._restarts, self._tell_stalls = restarts, tell_stalls
        self._nodes = Nodes(names, self._take, self._lose)
        self._slots: list[str] = []
        self._round, self._ports = 0, 0
        self._seen = Seen(submission.nodes * submission.tasks)
        self._said = b""
        self._failed_at = self._stopped_at = 0.0
        self.failed_ranks: list[Exit] = []

    def run(self, argv: Sequence[str]) -> Verdict:
        """Start the agents by ``argv``, and rounds of ranks until one is over for good."""
        own = {wire.TOKEN: self._nodes.token, wire.COORDINATOR: f"{self._address}:{self._nodes.port}"}
        try:
            self._srun = subprocess.Popen(
                argv, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            return Verdict(FAILED, f"srun does not start on {os.uname().nodename}: {error}")
        # A descriptor a node; only here, as srun would hand the limit on.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert self._srun.stdout is not None
        os.set_blocking(self._srun.stdout.fileno(), False)
        try:
            return self._gather() or self._rounds()
        finally:
            self._nodes.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._srun.wait(GRACE_SECONDS)
            self._srun.kill()
            self._hear_srun()

    def _gather(self) -> Verdict | None:
        """Wait for the agents; return why that is no use, or nothing."""
        wanted, begun = self._submission.nodes, time.monotonic()
        enough = 0.0
        while len(self._nodes) < len(self._names):
            self._turn()
            now = time.monotonic()
            said = self._said.decode(errors="replace").strip()
            missing = [name for name in self._names if name not in self._nodes]
            enough = (enough or now) if len(self._nodes) >= wanted else 0.0
            if enough and now - enough > SPARE_SECONDS:
                return None
            if self._seen.stops:
                return judge(self._member, self._seen)
            over = self._srun.poll() is not None
            broken = set(_TASK_FAILED.findall(said)) & set(missing)
            if over or (broken and len(self._names) - len(broken) < wanted):
                words = f"no agent on {', '.join(sorted(broken) or missing)}: {_first_cause(said)}"
                if _NODE_FAILED.search(said):
                    self._blame(missing)
                    return Verdict(REQUEUE, words)
                return Verdict(REQUEUE if BUSY.search(said) else FAILED, words)
            if now - begun > START_SECONDS and not enough:
                self._blame(missing)
                return Verdict(REQUEUE, f"no agent on {', '.join(missing)} after {START_SECONDS:.0f} s")
        return None

    def _blame(self, names: Iterable[str]) -> None:
        for name in names:
            self._failures[name] = self._failures.get(name, 0) + 1

    def _rounds(self) -> Verdict:
        by_failures = sorted(
            filter(self._nodes.__contains__, self._names),
            key=lambda name: self._failures.get(name, 0) >= MOST_FAILURES,
        )
        self._slots = by_failures[: self._submission.nodes]
        while True:
            self._start()
            while (verdict := self._verdict()) is None:
                self._turn()
            # Those that are made to end from here on are not at fault.
            failed = self._seen.failed
            self.failed_ranks = sorted(failed, key=cause(failed).__ne__) if failed else []
            self._end()
            if verdict.outcome == RETRY:
                self._ports += 1
                if self._ports == RENDEZVOUS_TRIES or "MASTER_PORT" in os.environ:
                    return verdict._replace(outcome=REQUEUE)
            elif verdict.outcome == RESTART:
                self._blame(verdict.nodes)
                if refusal := self._restarts(verdict):
                    return verdict._replace(outcome=FAILED, reason=refusal)
            else:
                return verdict
            if self._seen.stops:
                return judge(self._member, self._seen)
            if not self._fill_slots():
                return verdict._replace(outcome=REQUEUE, reason=f"{verdict.reason}; no spare node")
            say(f"{self._member.name}: {verdict.outcome}: {verdict.reason}")

    def _fill_slots(self) -> bool:
        """Have spare nodes take the place of those gone or failed; return whether every slot has a node."""
        good = [n for n in self._names if n in self._nodes and self._failures.get(n, 0) < MOST_FAILURES]
        spare = iter([name for name in good if name not in self._slots])
        self._slots = [name if name in good else next(spare, "") for name in self._slots]
        return all(self._slots)

    def _start(self) -> None:
        self._round += 1
        self._seen, self._failed_at = Seen(self._seen.world, stops=self._seen.stops), 0.0
        tasks = self._submission.tasks
        # Not of the number of the job, which two clusters of one machine may both have.
        name = secrets.token_hex(8)
        port = os.environ.get("MASTER_PORT") or choose_port(name)
        first = self._slots[0]
        told: dict[str, Any] = {
            "round": self._round,
            "world": self._seen.world,
            "local_world": tasks,
            "port": int(port),
            "meeting": name,
        }
        # An agent on this node may have come over the loopback interface.
        address = self._address if first == self._names[0] else self._nodes[first].address
        told |= {"address": address, "cores": self._submission.cores}
        for slot, name in enumerate(self._slots):
            node = self._nodes[name]
            node.busy, node.beats = True, []
            self._nodes.tell(name, start={**told, "first": slot * tasks})

    def _end(self) -> None:
        """Have what is left of the ranks end; a node that cannot end its own is lost."""
        self._tell_stalls({})
        for name in self._slots:
            self._nodes.tell(name, end=GRACE_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS + KILL_SECONDS
        while busy := [name for name in self._slots if name in self._nodes and self._nodes[name].busy]:
            self._turn()
            if time.monotonic() > deadline:
                for name in busy:
                    self._nodes.lose(name, "its ranks do not end")

    def _verdict(self) -> Verdict | None:
        """Return what the round has come to, None while it goes on."""
        seen, now = self._seen, time.monotonic()
        ranks = {name: self._ranks(slot) for slot, name in enumerate(self._slots)}
        gone = {rank for name in seen.lost for rank in ranks.get(name, ())}
        left = set(range(seen.world)) - seen.exits.keys() - gone
        if not seen.lost:
            self._look_for_standstills(left)
        failed = seen.failed
        if seen.stops:
            return None if left and self._may_save(now) else judge(self._member, seen)
        # Ended by a stop signal, of which its agent is about to tell.
        stopped = any(-one.status in STOP_SIGNALS for one in failed)
        lost = seen.lost or seen.frozen or seen.hung or any(one.killed for one in failed)
        if lost or not (left or stopped):
            return judge(self._member, seen)
        self._failed_at = (self._failed_at or now) if failed else 0.0
        # A node that has spoken since has told of what had happened to its ranks before.
        spoken = all(self._nodes[name].line.heard > self._failed_at for name in self._slots)
        if failed and now - self._failed_at > SETTLE_SECONDS and spoken:
            return judge(self._member, seen)
        return None

    def _may_save(self, now: float) -> bool:
        """Whether ranks that were told to stop may still take their time."""
        seen = self._seen
        ended = (os.EX_TEMPFAIL, *(-number for number in STOP_SIGNALS))
        broken = seen.lost or seen.frozen or seen.hung or any(one.status not in ended for one in seen.failed)
        self._failed_at = (self._failed_at or now) if broken else 0.0
        if broken and now - self._failed_at > BROKEN_SECONDS:
            return False
        if signal.SIGUSR2 not in seen.stops:
            # What they may take for it is Slurm's to say.
            return True
        delay = self._submission.signal_delay_s
        return now - self._stopped_at < delay - min(_LEAD_SECONDS, delay / 4)

    def _look_for_standstills(self, left: set[int]) -> None:
        silence = self._submission.silence_s
        beats = [beat for name in self._slots for beat in self._nodes[name].beats]
        self._seen.frozen |= frozen(beats, silence)
        if self._member.saves and len(beats) == len(left):
            self._seen.hung = hung(beats, silence)
        told = min(TOLD_SECONDS, silence / 2)
        quiet = {beat.rank: (beat.node, beat.quiet, beat.phase) for beat in beats if beat.quiet > told}
        self._tell_stalls(quiet)

    def _ranks(self, slot: int) -> range:
        return range(slot * self._submission.tasks, (slot + 1) * self._submission.tasks)

    def _take(self, name: str, message: dict[str, Any]) -> None:
        node = self._nodes[name]
        if "stop" in message:
            self._stopped_at = self._stopped_at or time.monotonic()
            self._seen.stops.append(int(message["stop"]))
        if message.get("round") != self._round:
            return
        if "exit" in message:
            ended = Exit(int(message["rank"]), name, int(message["exit"]), str(message["words"]))
            self._seen.exits[ended.rank] = ended
        if "beats" in message:
            node.beats = [Beat.read(name, beat) for beat in message["beats"]]
            self._nodes.tell(name, heard=True)
        node.busy = node.busy and "ended" not in message

    def _lose(self, name: str, why: str) -> None:
        if name in self._slots:
            self._seen.lost.setdefault(name, why)

    def _turn(self) -> None:
        """Hear whoever speaks, for a fifth of a second at most."""
        self._nodes.turn()
        self._hear_srun()

    def _hear_srun(self) -> None:
        assert self._srun.stdout is not None
        if said := self._srun.stdout.read():
            self._said = (self._said + said)[-_SAID_BYTES:]
            say(said)


def _first_cause(said: str) -> str:
    """Return what srun said first of why it cannot run the agents."""
    lines = [line for line in said.splitlines() if "error" in line.lower()]
    return (lines or said.splitlines() or ["srun said nothing"])[0][:_CAUSE_CHARACTERS]
