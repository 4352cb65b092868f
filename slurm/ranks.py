"""One rank, as the agent of its node sees it: its command and environment, its words and signs of life."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from nml.lifeline import is_stopped, work_seconds
from nml.untrusted import check_object, parse_json, printable
from slurm.members import Member
from slurm.rendezvous import interface_towards

WORDS_BYTES = 4000
# Between two looks: a stopped process has none, and one of many on a busy machine little.
_WORK_SECONDS = 0.05
_PHASE_CHARACTERS = 80
# Of 64 KB, at one look, so that one rank that never falls silent keeps no other unheard.
_MOST_READS = 16


class Rank:
    """One rank, as its agent sees it.

    Args:
        number: Its rank.
        process: Its process.
        log: Where its words go.
        words, beats: The pipes through which it speaks.
    """

    def __init__(
        self, number: int, process: subprocess.Popen[bytes], log: int, words: int, beats: int
    ) -> None:
        self.number, self.process, self._log = number, process, log
        self._pipe, self._words, self._beats = words, b"", beats
        self._beat: dict[str, Any] = {}
        self._rest, self._worked = b"", 0.0
        self.heard = time.monotonic()

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
                self._beat, self.heard = _beat(line), time.monotonic()

    def look(self) -> dict[str, Any]:
        """Return how it is: its last beat, and for how long it has given no sign of life.

        That is a beat; work, which keeps a thread from beating; and of a command that does not beat, or not
        yet, that it is not stopped.
        """
        worked = work_seconds(self.process.pid)
        if worked - self._worked > _WORK_SECONDS or not (self._beat or is_stopped(self.process.pid)):
            self.heard = time.monotonic()
        self._worked = worked
        return {**self._beat, "rank": self.number, "quiet": round(time.monotonic() - self.heard, 1)}

    def last_words(self) -> str:
        """Return what it wrote last to its standard error."""
        self.listen()
        return self._words.decode(errors="replace")

    def close(self) -> None:
        """Close its pipes and its log."""
        self.listen()
        for end in (self._pipe, self._beats, self._log):
            os.close(end)


def rank_command(member: Member, snapshot: str) -> list[str]:
    """Return the command of a rank: a module is run from the snapshot, anything else as it is."""
    argv = list(member.argv)
    if argv[1:2] != ["-m"]:
        return argv
    return [argv[0], str(Path(snapshot) / "slurm" / "rank.py"), snapshot, *argv[2:]]


def rank_environment(
    member: Member, snapshot: str, rank: int, local: int, told: dict[str, Any]
) -> dict[str, str]:
    """Return what a rank's command finds in its environment beyond its agent's."""
    path = [snapshot] if os.pathsep not in snapshot else []
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH")])),
        # The command runs in its user's folder, which may well be the live code.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # One thread a rank unless asked for more: torch would take every core of the node.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(told["cores"]),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NTASKS": str(told["world"]),
    }
    if member.distributed:
        own |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(told["world"]),
            "LOCAL_RANK": str(local),
            "NODE_RANK": str(rank // told["local_world"]),
            "LOCAL_WORLD_SIZE": str(told["local_world"]),
            "MASTER_ADDR": str(told["address"]),
            "MASTER_PORT": str(told["port"]),
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
    beat = check_object({"pace": 0.0, "phase": "starting", **told}, pace=int | float, phase=str)
    pace, phase = float(beat["pace"]), printable(beat["phase"])
    return {"pace": pace if math.isfinite(pace) else 0.0, "phase": phase[:_PHASE_CHARACTERS]}


def _read(end: int) -> bytes:
    """Return what has come through a pipe: a rank that says much is not to wait for its agent."""
    parts: list[bytes] = []
    with contextlib.suppress(OSError):
        while len(parts) < _MOST_READS and (part := os.read(end, 1 << 16)):
            parts.append(part)
    return b"".join(parts)
