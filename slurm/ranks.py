"""One rank, as the agent of its node sees it: its command and environment, its words and signs of life."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from nml.lifeline import BEATS, MEETING_NAME, descendants, end_with, is_stopped, work_seconds
from nml.untrusted import Untrusted, check_object, parse_json, printable
from slurm import wire
from slurm.container import command_inside, wraps
from slurm.members import Container, Member
from slurm.rank import STAND_BY
from slurm.rendezvous import interface_towards

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
WORDS_BYTES = 4000
# Between two looks: a stopped process has none, and one of many on a busy machine little.
_WORK_SECONDS = 0.05
_PHASE_CHARACTERS = 80
_FIRST_BEAT = {"step": -1, "pace": 0.0, "since": 0.0, "phase": "starting"}
# Of 64 KB, at one look, so that one rank that never falls silent keeps no other unheard.
_MOST_READS = 16


class Rank:
    """One rank, as its agent sees it.

    Args:
        number: Its rank.
        process: Its process.
        log: Where its words go.
        words, beats: The pipes through which it speaks.
        wrapped: Whether the process only waits for the rank, which is its child.
    """

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        log: int,
        words: int,
        beats: int,
        *,
        wrapped: bool = False,
    ) -> None:
        self.number, self.process, self._log, self._wrapped = number, process, log, wrapped
        self._pipe, self._words, self._beats = words, b"", beats
        self._beat: dict[str, Any] = _beat(b"{}")
        self._rest, self._worked = b"", 0.0
        self.be_alive()

    def be_alive(self) -> None:
        """Begin to count anew how long it has given no sign of life, and not moved on."""
        self._heard = self._moved = time.monotonic()

    @property
    def steps(self) -> bool:
        """Whether it is known how long a step of its takes."""
        return bool(self._beat["pace"])

    def begin(self, environment: dict[str, str]) -> bool:
        """Have a rank that stood by begin; return whether it was still there."""
        self.be_alive()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(environment).encode() + b"\n")
        except OSError:
            self.close()
            return False
        return True

    def listen(self) -> None:
        """Take what it has said."""
        if said := _read(self._pipe):
            self._words = (self._words + said)[-WORDS_BYTES:]
            # A full disk must not keep its words from being told.
            with contextlib.suppress(OSError):
                os.write(self._log, said)
        *lines, rest = (self._rest + _read(self._beats)).split(b"\n")
        self._rest = rest[-WORDS_BYTES:]
        for line in lines:
            with contextlib.suppress(ValueError):
                self._beat, self._heard = _beat(line), time.monotonic()
                if self._beat["pace"]:
                    self._moved = self._heard - self._beat["since"]

    def look(self) -> dict[str, Any]:
        """Return how it is: its last beat, and for how long it has given no sign of life and not moved on.

        A sign of life is a beat; work, which keeps a thread from beating; and of a command that does not
        beat, or not yet, that it is not stopped. One that makes steps moves on with each, others by working.
        """
        own = self.process.pid
        if self._wrapped:
            own = min(descendants(own), default=own)
        now, worked = time.monotonic(), work_seconds(own)
        works, self._worked = worked - self._worked > _WORK_SECONDS, worked
        if works or (self._beat["step"] < 0 and not is_stopped(own)):
            self._heard = now
        if works and not self._beat["pace"]:
            self._moved = now
        told = {"rank": self.number, "pace": self._beat["pace"], "phase": self._beat["phase"]}
        return {**told, "quiet": round(now - self._heard, 1), "still": round(now - self._moved, 1)}

    def last_words(self) -> str:
        """Return what it wrote last to its standard error."""
        self.listen()
        return self._words.decode(errors="replace")

    def close(self) -> None:
        """Close its pipes and its log."""
        self.listen()
        for end in (self._pipe, self._beats, self._log):
            os.close(end)
        if self.process.stdin is not None:
            self.process.stdin.close()


def start_rank(
    member: Member,
    snapshot: str,
    rank: int,
    told: dict[str, Any],
    log: Path,
    *,
    container: Container | None = None,
    stand_by: bool = False,
) -> Rank:
    """Start a rank.

    Args:
        member: What it runs.
        snapshot: The code.
        rank: Its number.
        told: What the coordinator tells of the round.
        log: Where its words go.
        container: What it runs in.
        stand_by: Whether it only imports what takes long, and waits for :meth:`Rank.begin`.

    Raises:
        OSError: If it does not start.
    """
    parent, module = os.getpid(), member.argv[1:2] == ("-m",)
    command = list(member.argv)
    if module:
        # From the snapshot; anything else as it is.
        command[1:2] = [str(Path(snapshot) / "slurm" / "rank.py"), snapshot]
    environment = os.environ | _python_environment(snapshot, told)
    environment |= {STAND_BY: "1"} if stand_by else rank_environment(member, rank, told)
    for name in (wire.TOKEN, wire.COORDINATOR):
        environment.pop(name, None)
    with contextlib.ExitStack() as opened:
        written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        (words, words_end), (beats, beats_end) = os.pipe(), os.pipe()
        for end in (written, words, beats):
            opened.callback(os.close, end)
        for end in (words, beats, beats_end):
            os.set_blocking(end, False)
        try:
            process = subprocess.Popen(
                command_inside(container, command, member.cwd),
                env={**environment, BEATS: str(beats_end)},
                cwd=member.cwd,
                stdin=subprocess.PIPE if stand_by else subprocess.DEVNULL,
                stdout=written,
                stderr=words_end,
                bufsize=0,
                pass_fds=(beats_end,),
                preexec_fn=lambda: end_with(parent, signal.SIGKILL),
            )
        finally:
            for end in (words_end, beats_end):
                os.close(end)
        opened.pop_all()
    return Rank(rank, process, written, words, beats, wrapped=wraps(container))


def _python_environment(snapshot: str, told: dict[str, Any]) -> dict[str, str]:
    """Return what a rank's Python has to find as it starts."""
    path = [snapshot] if os.pathsep not in snapshot else []
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH")])),
        # The command runs in its user's folder, which may well be the live code.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # One thread a rank unless asked for more: torch would take every core of the node.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(told["cores"]),
    }


def rank_environment(member: Member, rank: int, told: dict[str, Any]) -> dict[str, str]:
    """Return what a rank's command finds in its environment of its place among the others."""
    node, local = divmod(rank, told["local_world"])
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NTASKS": str(told["world"])}
    if member.distributed:
        own |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(told["world"]),
            "LOCAL_RANK": str(local),
            "NODE_RANK": str(node),
            "LOCAL_WORLD_SIZE": str(told["local_world"]),
            "MASTER_ADDR": str(told["address"]),
            "MASTER_PORT": str(told["port"]),
            MEETING_NAME: str(told["meeting"]),
        }
        interface = interface_towards(own["MASTER_ADDR"])
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            own["GLOO_SOCKET_IFNAME"] = interface
    return own


def _beat(line: bytes) -> dict[str, Any]:
    """Return what of a beat is reckoned with: a rank may write anything.

    Raises:
        Untrusted: If it is none.
    """
    told = check_object(parse_json(line, most=WORDS_BYTES))
    number = int | float
    beat = check_object({**_FIRST_BEAT, **told}, step=number, pace=number, since=number, phase=str)
    numbers = {name: float(beat[name]) for name in ("step", "pace", "since")}
    if not all(map(math.isfinite, numbers.values())):
        raise Untrusted("a beat of no number")
    return {**numbers, "phase": printable(beat["phase"])[:_PHASE_CHARACTERS]}


def _read(end: int) -> bytes:
    """Return what has come through a pipe: a rank that says much is not to wait for its agent."""
    parts: list[bytes] = []
    with contextlib.suppress(OSError):
        while len(parts) < _MOST_READS and (part := os.read(end, 1 << 16)):
            parts.append(part)
    return b"".join(parts)
