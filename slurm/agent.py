"""What runs on each node of a job: it starts the ranks of its slot, and tells the coordinator how they are.

A rank is a child of this process, so how it ends is known, and its last words, whatever they are, pass
through here. While it lives, it says how far it is through a pipe. What it started and left behind becomes
this process's own child, and ends with the round.

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
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from nml.lifeline import BEATS, adopt_orphans, descendants, end_with, kill
from slurm import wire
from slurm.members import Submission, own_index, own_job
from slurm.ranks import Rank, rank_command, rank_environment
from slurm.requeue import requeue

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
BEAT_SECONDS = 2.0
# Without a word of the coordinator for so long, it or the network is gone.
SILENCE_SECONDS = 120.0
# What commands that save may take for it once the coordinator is gone.
SAVE_SECONDS = 60.0
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
        self._member, self._snapshot = submission.members[own_index()], submission.snapshot
        self._logs, self._line, self._token = logs, line, token
        self._ranks: list[Rank] = []
        self._running: dict[int, Rank] = {}
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
                        rank.heard = self._line.heard = now
                seen = now
                if self._stop and self._known and not self._told_stop:
                    self._line.say(stop=self._stop, round=self._round)
                    self._told_stop = True
                self._reap()
                if self._known and now - beaten > BEAT_SECONDS:
                    beaten = now
                    self._line.say(beats=[one.look() for one in self._running.values()], round=self._round)
                self._end_round(now)
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
            self._over = self._over or "bye" in message

    def _start(self, told: dict[str, Any]) -> None:
        self._round, first, local_world = told["round"], told["first"], told["local_world"]
        self._slot, self._first = first // local_world, first
        for local in range(local_world):
            try:
                rank = self._start_rank(first + local, local, told)
            except OSError as error:
                self._line.say(
                    exit=127,
                    rank=first + local,
                    words=f"cannot start: {error.strerror}: {error.filename}",
                    round=self._round,
                )
                continue
            self._ranks.append(rank)
            self._running[rank.process.pid] = rank
            self._line.say(started=rank.process.pid, rank=rank.number, round=self._round)

    def _start_rank(self, rank: int, local: int, told: dict[str, Any]) -> Rank:
        member = self._member
        log = os.open(self._log(rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        (words, words_end), (beats, beats_end) = os.pipe(), os.pipe()
        for end in (words, beats, beats_end):
            os.set_blocking(end, False)
        parent = os.getpid()
        environment = os.environ | rank_environment(member, self._snapshot, rank, local, told)
        environment[BEATS] = str(beats_end)
        for name in (wire.TOKEN, wire.COORDINATOR):
            environment.pop(name, None)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if member.saves else ())
        early = self._stop or next(iter(signal.sigpending() & {*STOP_SIGNALS}), None)
        try:
            process = subprocess.Popen(
                rank_command(member, self._snapshot),
                env=environment,
                cwd=member.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=words_end,
                pass_fds=(beats_end,),
                preexec_fn=lambda: end_with(parent, signal.SIGKILL),
            )
        except OSError:
            for end in (log, words, beats):
                os.close(end)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for end in (words_end, beats_end):
                os.close(end)
        if early:
            # Nobody was there to hear of it.
            process.send_signal(early)
        return Rank(rank, process, log, words, beats)

    def _reap(self) -> None:
        """Note how children have ended; also those that others left to this process."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if rank := self._running.pop(ended[0], None):
                    rank.process.returncode = status = os.waitstatus_to_exitcode(ended[1])
                    self._line.say(exit=status, rank=rank.number, words=rank.last_words(), round=self._round)

    def _end_round(self, now: float) -> None:
        """Once told to, let ranks end until the deadline, and then kill all there is below this process."""
        if not self._deadline or (self._running and now < self._deadline):
            return
        if rest := descendants(os.getpid()):
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
