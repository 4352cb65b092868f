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
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slurm import wire
from slurm.controller import BUSY
from slurm.members import Member, Submission, own_attempt
from slurm.ranks import STOP_SIGNALS
from slurm.rendezvous import choose_port
from slurm.verdict import FAILED, REQUEUE, RESTART, RETRY, Exit, Seen, Verdict, cause, judge
from slurm.words import say

# How long the nodes may take to start their agents, and spare ones longer than the rest.
START_SECONDS = 300.0
SPARE_SECONDS = 30.0
# A node that says nothing for so long is lost; agents speak every two seconds.
SILENCE_SECONDS = 60.0
# A rank without a sign of life is told of; after the submission's silence and so many steps it is frozen.
TOLD_SECONDS, FROZEN_STEPS = 10.0, 3
# Nor do ranks hang that beat, but make no step: for so many times that silence, and so many steps.
HUNG_SILENCES, HUNG_STEPS = 10.0, 30
# What a rank does that waits for others, and what may take as long as their storage does.
_WAITING, _READING = ("waiting", "meeting the others"), "reading data"
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
_POLL_SECONDS = 0.2
_GAP_SECONDS = 10.0
_PROOF_SECONDS = 10.0
_STRANGERS = 64
_SAID_BYTES = 20_000
_CAUSE_CHARACTERS = 300
# Said by srun of a node that died after it was allocated; another one may do.
_NODE_FAILED = re.compile(r"Communication \w+ failure|Message \w+ failure|Node failure on", re.IGNORECASE)
_TASK_FAILED = re.compile(r"srun: error: (\S+): tasks? [^:]*: (?:Exited|\w* ?\(?core|Terminated|Killed)")


class Node:
    """A node whose agent has come: its line, address, last beats, and whether its ranks have ended."""

    def __init__(self, line: wire.Line, address: str) -> None:
        self.line, self.address = line, address
        self.beats: list[dict[str, Any]] = []
        self.busy = False


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
        self._token = secrets.token_hex(32)
        # On all interfaces: here its own name may lead to the loopback one, and elsewhere to another.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        # Since when they have been there.
        self._strangers: dict[wire.Line, float] = {}
        self._nodes: dict[str, Node] = {}
        self._slots: list[str] = []
        self._round, self._ports = 0, 0
        self._seen = Seen(submission.nodes * submission.tasks)
        self._said = b""
        self._failed_at = self._stopped_at = self._stalled = 0.0
        self.failed_ranks: list[Exit] = []
        self._turned = time.monotonic()

    def run(self, argv: Sequence[str]) -> Verdict:
        """Start the agents by ``argv``, and rounds of ranks until one is over for good."""
        own = {wire.TOKEN: self._token, wire.COORDINATOR: f"{self._address}:{self._server.getsockname()[1]}"}
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
            for node in self._nodes.values():
                with contextlib.suppress(wire.Gone):
                    node.line.say(bye=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._srun.wait(GRACE_SECONDS)
            self._srun.kill()
            self._hear_srun()
            self._server.close()

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
        port = os.environ.get("MASTER_PORT") or choose_port(f"{own_attempt()} {self._round}")
        first = self._slots[0]
        told: dict[str, Any] = {
            "round": self._round,
            "world": self._seen.world,
            "local_world": tasks,
            "port": int(port),
        }
        # An agent on this node may have come over the loopback interface.
        address = self._address if first == self._names[0] else self._nodes[first].address
        told |= {"address": address, "cores": self._submission.cores}
        for slot, name in enumerate(self._slots):
            node = self._nodes[name]
            node.busy, node.beats = True, []
            self._tell(name, start={**told, "first": slot * tasks})

    def _end(self) -> None:
        """Have what is left of the ranks end; a node that cannot end its own is lost."""
        self._tell_stalls({})
        for name in self._slots:
            self._tell(name, end=GRACE_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS + KILL_SECONDS
        while busy := [name for name in self._slots if name in self._nodes and self._nodes[name].busy]:
            self._turn()
            if time.monotonic() > deadline:
                for name in busy:
                    self._lose(name, "its ranks do not end")

    def _verdict(self) -> Verdict | None:
        """Return what the round has come to, None while it goes on."""
        seen, now = self._seen, time.monotonic()
        ranks = {name: self._ranks(slot) for slot, name in enumerate(self._slots)}
        gone = {rank for name in seen.lost for rank in ranks.get(name, ())}
        left = set(range(seen.world)) - seen.exits.keys() - gone
        if not seen.lost:
            self._look_for_frozen(now, left)
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

    def _look_for_frozen(self, now: float, left: set[int]) -> None:
        beats = [(name, beat) for name in self._slots for beat in self._nodes[name].beats]
        pace = max((float(beat.get("pace", 0.0)) for _, beat in beats), default=0.0)
        quiet: dict[int, tuple[str, float, str]] = {}
        for name, beat in beats:
            silence, doing = float(beat["quiet"]), str(beat.get("phase", "starting"))
            if silence > min(TOLD_SECONDS, self._submission.silence_s / 2):
                quiet[int(beat["rank"])] = (name, silence, doing)
            if silence > self._submission.silence_s + FROZEN_STEPS * pace:
                why = f"no sign of life for {silence:.0f} s ({doing})"
                self._seen.frozen[int(beat["rank"])] = (name, why)
        if len(beats) == len(left) and self._member.saves:
            self._look_for_hung(beats, pace)
        if quiet or self._stalled:
            self._stalled = now if quiet else 0.0
            self._tell_stalls(quiet)

    def _look_for_hung(self, beats: Sequence[tuple[str, dict[str, Any]]], pace: float) -> None:
        """Find that no rank has moved on for too long: not in its steps, nor before them by any work."""
        still = min((float(beat["still"]) for _, beat in beats), default=0.0)
        limit = max(HUNG_SILENCES * self._submission.silence_s, HUNG_STEPS * pace)
        if still < limit or all(beat["phase"] == _READING for _, beat in beats):
            return
        awaited = [(name, beat) for name, beat in beats if beat["phase"] not in _WAITING]
        why = f"no step for {still:.0f} s"
        if len(awaited) != 1:
            doing = ", ".join(sorted({str(beat["phase"]) for _, beat in beats}))
            self._seen.hung = (f"{why}: which rank the others wait for is not known ({doing})", ())
            return
        [(name, beat)] = awaited
        self._seen.hung = (f"{why}: rank {beat['rank']} hangs on {name} ({beat['phase']})", (name,))

    def _ranks(self, slot: int) -> range:
        return range(slot * self._submission.tasks, (slot + 1) * self._submission.tasks)

    def _turn(self) -> None:
        """Hear whoever speaks, for a fifth of a second at most."""
        assert self._srun.stdout is not None
        lines = {node.line: name for name, node in self._nodes.items()}
        heard: list[Any] = [self._server, *self._strangers, *lines]
        ready = set(wire.wait_for(heard, _POLL_SECONDS))
        for line in [one for one in self._strangers if one in ready]:
            self._hear_stranger(line)
        for line in [one for one in lines if one in ready]:
            self._hear(lines[line], line)
        if self._server in ready:
            self._accept()
        self._hear_srun()
        now = time.monotonic()
        gap, self._turned = now - self._turned, now
        if gap > _GAP_SECONDS:
            self._strangers = dict.fromkeys(self._strangers, now)
            for line in lines:
                line.heard = now
        for line in [one for one, since in self._strangers.items() if now - since > _PROOF_SECONDS]:
            del self._strangers[line]
            line.close()
        for name in [name for name, node in self._nodes.items() if now - node.line.heard > SILENCE_SECONDS]:
            self._lose(name, f"not heard of for {SILENCE_SECONDS:.0f} s")

    def _accept(self) -> None:
        try:
            line = wire.Line(self._server.accept()[0])
        except OSError:
            return
        try:
            if len(self._strangers) >= _STRANGERS + len(self._names):
                raise wire.Gone("too many")
            line.challenge()
            self._strangers[line] = time.monotonic()
        except wire.Gone:
            line.close()

    def _hear_stranger(self, line: wire.Line) -> None:
        try:
            messages = line.hear()
            if not messages:
                # The rest of it is on its way.
                return
            first, *more = messages
            name, address = str(first["node"]), str(first["address"])
            if not line.is_proven(first, self._token) or name not in self._names:
                raise wire.Gone("a stranger")
        except (wire.Gone, KeyError):
            del self._strangers[line]
            line.close()
            return
        del self._strangers[line]
        self._lose(name, "its agent was started again")
        self._nodes[name] = Node(line, address)
        self._take_all(name, line, more)

    def _hear(self, name: str, line: wire.Line) -> None:
        try:
            messages = line.hear()
        except wire.Gone as gone:
            self._lose(name, f"its agent is gone ({gone})")
        else:
            self._take_all(name, line, messages)

    def _take_all(self, name: str, line: wire.Line, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            # An answer that nobody takes ends the line, whatever else has come through it.
            if (node := self._nodes.get(name)) is None or node.line is not line:
                return
            try:
                self._take(name, message)
            except (ValueError, KeyError, TypeError) as error:
                self._lose(name, f"its agent says what none does ({error})")

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
            node.beats = [dict(beat) for beat in message["beats"]]
            self._tell(name, heard=True)
        node.busy = node.busy and "ended" not in message

    def _tell(self, name: str, **message: Any) -> None:
        if node := self._nodes.get(name):
            try:
                node.line.say(**message)
            except wire.Gone as gone:
                self._lose(name, f"its agent does not listen ({gone})")

    def _lose(self, name: str, why: str) -> None:
        if (node := self._nodes.pop(name, None)) is None:
            return
        # It may live, and be late.
        with contextlib.suppress(wire.Gone):
            node.line.say(bye=True)
        node.line.close()
        if name in self._slots:
            self._seen.lost.setdefault(name, why)

    def _hear_srun(self) -> None:
        assert self._srun.stdout is not None
        if said := self._srun.stdout.read():
            self._said = (self._said + said)[-_SAID_BYTES:]
            say(said)


def _first_cause(said: str) -> str:
    """Return what srun said first of why it cannot run the agents."""
    lines = [line for line in said.splitlines() if "error" in line.lower()]
    return (lines or said.splitlines() or ["srun said nothing"])[0][:_CAUSE_CHARACTERS]
