"""What runs on each node of a job: it starts the ranks of its slot, and tells the coordinator how they are.

A rank is a child of this process, so how it ends is known, and its last words, whatever they are, pass
through here. While it lives, it says how far it is through a pipe. What it started and left behind becomes
this process's own child, and ends with the round. Once ranks make steps, another process of each stands by
that has imported already what takes seconds, and takes its place where all start again.

Slurm signals every process of a step, so that a stop reaches each command by itself, once: commands that
save are started with the stop signals blocked, and hear of one that came early when they begin to listen.
This process notes it and passes it on to the coordinator, nothing more.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from nml.lifeline import adopt_orphans, descendants, is_stopped, kill
from slurm import wire
from slurm.container import status_outside
from slurm.members import Submission, own_job
from slurm.ranks import STOP_SIGNALS, Rank, rank_environment, start_rank
from slurm.requeue import requeue

BEAT_SECONDS = 2.0
# Without a word of the coordinator for so long, it or the network is gone.
SILENCE_SECONDS = 120.0
# What commands that save may take for it once the coordinator is gone.
SAVE_SECONDS = 60.0
# Ranks that fail fail early; importing takes a core from those that run.
STANDBY_SECONDS = float(os.environ.get("NML_STANDBY_SECONDS", "60"))
# What killed processes may take to be gone.
KILL_SECONDS = 60.0
_CONNECT_SECONDS, _ANSWER_SECONDS = 60.0, 10.0
_POLL_SECONDS = 0.1
# A loop that comes later than this was kept from it, as by `scontrol suspend`.
_GAP_SECONDS = 10.0


class Agent:
    """The agent of one node.

    Args:
        submission: What the job runs.
        logs: Folder of the ranks' logs.
        line: To the coordinator.
        token: The job's.
    """

    def __init__(self, submission: Submission, logs: Path, line: wire.Line, token: str) -> None:
        self._member, self._snapshot = submission.own_member(), submission.snapshot
        self._logs, self._line, self._token = logs, line, token
        self._container = submission.container
        self._ranks: list[Rank] = []
        self._running: dict[int, Rank] = {}
        # By rank, and since when all of this node make steps.
        self._standbys: dict[int, Rank] = {}
        self._stepped = 0.0
        self._told: dict[str, Any] = {}
        self._round, self._deadline, self._over = 0, 0.0, False
        # Spare nodes have none, and the most patience.
        self._slot, self._first = submission.nodes, 0
        self._stop: int | None = None
        self._told_stop = self._known = False
        adopt_orphans()
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self._stop = self._stop or number

    def run(self) -> int:
        """Do what the coordinator says until it says goodbye; return the exit status."""
        beaten = seen = time.monotonic()
        try:
            while not self._over:
                if select.select([self._line], [], [], _POLL_SECONDS)[0]:
                    self._hear()
                for rank in self._ranks:
                    rank.listen()
                now = time.monotonic()
                if now - seen > _GAP_SECONDS:
                    for rank in self._ranks:
                        rank.be_alive()
                    self._line.heard = now
                seen = now
                if self._stop and self._known and not self._told_stop:
                    self._line.say(stop=self._stop, round=self._round)
                    self._told_stop = True
                self._reap()
                if self._known and now - beaten > BEAT_SECONDS:
                    beaten = now
                    self._line.say(beats=[one.look() for one in self._running.values()], round=self._round)
                self._end_round(now)
                self._stand_by(now)
                if now - self._line.heard > SILENCE_SECONDS:
                    raise wire.Gone(f"silent for {SILENCE_SECONDS:.0f} s")
        except wire.Gone as gone:
            if _coordinator_answers():
                # Without this node: other ranks have the places of those here.
                self._say(f"the coordinator has given this node up ({gone})")
                self._kill_all()
                return 0
            self._say(f"the coordinator is gone ({gone}); the ranks save and end")
            self._let_save()
            # Where its node is lost, Slurm has the others wait for the time limit. One agent is enough.
            time.sleep(self._slot * BEAT_SECONDS)
            self._say(requeue() or "the job is requeued")
            return 1
        self._kill_all()
        return 0

    def _hear(self) -> None:
        for message in self._line.hear():
            if "nonce" in message:
                node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
                answer = wire.proof(self._token, str(message["nonce"]))
                self._line.say(proof=answer, node=node, address=self._line.own_address)
                self._known = True
            if "start" in message:
                self._start(dict(message["start"]))
            if "end" in message:
                self._deadline = time.monotonic() + float(message["end"])
                # One that is stopped does not end by itself, and others may wait for it.
                kill({pid: born for pid, born in descendants(os.getpid()).items() if is_stopped(pid)})
            self._over = self._over or "bye" in message

    def _start(self, told: dict[str, Any]) -> None:
        self._round, first, local_world = told["round"], told["first"], told["local_world"]
        self._slot, self._first, self._told, self._stepped = first // local_world, first, told, 0.0
        for number in range(first, first + local_world):
            try:
                rank = self._standbys.pop(number, None)
                if rank is None or not rank.begin(rank_environment(self._member, number, told)):
                    rank = self._start_rank(number)
            except OSError as error:
                words = f"cannot start: {error.strerror}: {error.filename}"
                self._line.say(exit=127, rank=number, words=words, round=self._round)
                continue
            self._ranks.append(rank)
            self._running[rank.process.pid] = rank

    def _stand_by(self, now: float) -> None:
        """Start processes that stand by, once this node's ranks have made steps for a while."""
        if self._deadline or self._standbys or not self._member.saves or not self._member.module:
            return
        if not self._stepped and self._running and all(rank.steps for rank in self._running.values()):
            self._stepped = now
        if self._stepped and now - self._stepped > STANDBY_SECONDS:
            # Once: where one cannot, it is not tried again and again.
            self._stepped = float("inf")
            for number in (rank.number for rank in self._ranks):
                with contextlib.suppress(OSError):
                    self._standbys[number] = self._start_rank(number, stand_by=True)

    def _start_rank(self, number: int, **how: bool) -> Rank:
        member = self._member
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if member.saves else ())
        early = self._stop or next(iter(signal.sigpending() & {*STOP_SIGNALS}), None)
        try:
            log, inside = self._log(number), self._container
            rank = start_rank(member, self._snapshot, number, self._told, log, container=inside, **how)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if early:
            # Nobody was there to hear of it.
            rank.process.send_signal(early)
        return rank

    def _reap(self) -> None:
        """Note how children have ended; also those that others left to this process."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if rank := self._running.pop(ended[0], None):
                    status = status_outside(self._container, os.waitstatus_to_exitcode(ended[1]))
                    rank.process.returncode = status
                    self._line.say(exit=status, rank=rank.number, words=rank.last_words(), round=self._round)
                for number in [n for n, one in self._standbys.items() if one.process.pid == ended[0]]:
                    self._standbys.pop(number).close()

    def _end_round(self, now: float) -> None:
        """Once told to, let ranks end until the deadline, and then kill all there is below this process."""
        if not self._deadline or (self._running and now < self._deadline):
            return
        rest = descendants(os.getpid())
        for rank in self._standbys.values():
            for kept in (rank.process.pid, *descendants(rank.process.pid)):
                rest.pop(kept, None)
        if rest:
            kill(rest)
            return
        for rank in self._ranks:
            rank.close()
        self._ranks, self._running, self._deadline = [], {}, 0.0
        self._line.say(ended=True, round=self._round)

    def _say(self, what: str) -> None:
        """Say something in the log of the slot's first rank: srun may be gone with the coordinator."""
        with contextlib.suppress(OSError), self._log(self._first).open("a") as log:
            log.write(f"agent on {os.uname().nodename}: {what}\n")

    def _log(self, rank: int) -> Path:
        return self._logs / f"{own_job()}_{rank}_log.out"

    def _let_save(self) -> None:
        for rank in self._running.values():
            if self._member.saves and not self._stop:
                rank.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SAVE_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            for rank in self._ranks:
                rank.listen()
            # There is nobody to tell.
            with contextlib.suppress(wire.Gone):
                self._reap()
        self._kill_all()

    def _kill_all(self) -> None:
        """Kill all there is below this process, as far as it can be."""
        deadline = time.monotonic() + KILL_SECONDS
        while (rest := descendants(os.getpid())) and time.monotonic() < deadline:
            kill(rest)
            time.sleep(_POLL_SECONDS)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _connect(seconds: float) -> wire.Line:
    address, _, port = os.environ[wire.COORDINATOR].rpartition(":")
    return wire.Line(socket.create_connection((address, int(port)), timeout=seconds))


def _coordinator_answers() -> bool:
    """Whether the coordinator lives, which asks whoever comes for a proof."""
    with contextlib.suppress(OSError, wire.Gone):
        line = _connect(_ANSWER_SECONDS)
        try:
            return any("nonce" in message for message in line.hear())
        finally:
            line.close()
    return False


def main(file: str) -> int:
    """Reach the coordinator and run; return the exit status."""
    line = _connect(_CONNECT_SECONDS)
    return Agent(Submission.read(Path(file)), Path(file).parent, line, os.environ[wire.TOKEN]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
