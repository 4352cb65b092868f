"""What Slurm runs on every rank: the member's command, watched.

submitit pickles a :class:`RankCommand`, which is two plain values. It is imported from the snapshot
on the compute node, starts the real command as a child and leaves a record of how it ended, from
which the batch script decides what to do next (:mod:`slurm.attempt`).

Signals. Slurm signals every process of a step: this one, the command, and the command's loader
workers. Only the command may act, by saving its state. This process notes the signal, so that the
end that follows is known to be a stop, and submitit's own handler, which would requeue from every
process that inherited it, is replaced.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from nml.files import write_json
from nml.untrusted import read_object
from slurm.members import Member, Submission, own_attempt, own_index
from slurm.rendezvous import interface_towards
from slurm.snapshot import check_running_from

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
POLL_SECONDS = 0.2
# A command that was still starting when a signal came has ignored it, and is told again.
REPEAT_SECONDS = 10.0
# How long a failed rank keeps the step alive for the others to say that they are there.
ROLL_CALL_SECONDS = 20.0
FAILED = "failed"


class RankCommand:
    """The command of one rank of one member.

    Args:
        submission: The file of the :class:`~slurm.members.Submission`.
    """

    def __init__(self, submission: str) -> None:
        self.submission = submission

    def __call__(self) -> None:
        """Run the command; end with its exit status."""
        submission = Submission.read(Path(self.submission))
        member = submission.members[own_index()]
        check_running_from(Path(submission.snapshot), member.module)
        rank = int(os.environ.get("SLURM_PROCID") or 0)
        world = int(os.environ.get("SLURM_NTASKS") or 1)
        watched = _Watched(
            Path(member.record) / own_attempt(), rank, world, saves=member.progress is not None
        )
        environment = os.environ | _environment(submission, member, rank, world)
        sys.exit(watched.run(list(member.argv), environment, member.cwd))


def _environment(submission: Submission, member: Member, rank: int, world: int) -> dict[str, str]:
    """Return what a rank's command finds in its environment beyond Slurm's."""
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, [submission.snapshot, os.environ.get("PYTHONPATH")])),
        # The command runs in its user's folder, which may well be the live code.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # One thread a rank unless asked for more: torch would take every core of the node.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK") or "1",
    }
    if member.distributed:
        own |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
            "NODE_RANK": os.environ.get("SLURM_NODEID", "0"),
            "LOCAL_WORLD_SIZE": str(world // int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)),
        }
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            own["GLOO_SOCKET_IFNAME"] = interface
    return own


class _Watched:
    """One rank's child process and its record.

    The record is ``rank-00000.json``: first as a reply to another rank's failure ("still here"),
    then with the end. A rank without one was lost with its node.
    """

    def __init__(self, folder: Path, rank: int, world: int, *, saves: bool) -> None:
        self.folder = folder
        self.rank = rank
        self.world = world
        self.saves = saves
        self.stop_signal: int | None = None
        self.answered = False
        self._told = 0.0

    def run(self, argv: list[str], environment: dict[str, str], cwd: str) -> int:
        """Run the child to its end and return the exit status of this rank."""
        # Ignored signals stay ignored over exec: one that comes before a command that saves has
        # installed its handlers must not kill it. Any other command is ended by the signal.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN if self.saves else self._note)
        child = subprocess.Popen(argv, env=environment, cwd=cwd)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            self._answer_roll_call()
            self._repeat_stop(child)
        status = child.returncode
        self._record(status)
        if status == 0 or self.stop_signal is not None:
            # A stop is no failure: srun must not kill ranks that are still saving.
            return 0
        self._call_roll()
        return status if status > 0 else 128 - status

    def _repeat_stop(self, child: subprocess.Popen[bytes]) -> None:
        """Say again to a command that saves that it is to stop: to it alone, not to what it started."""
        now = time.monotonic()
        if self.stop_signal is not None and self.saves and now - self._told >= REPEAT_SECONDS:
            if self._told:
                child.send_signal(self.stop_signal)
            self._told = now

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        # srun ends the step of a failed rank with SIGTERM too, and that is no stop.
        if self.stop_signal is None and not (self.folder / FAILED).exists():
            self.stop_signal = number

    def _record(self, status: int | None) -> None:
        write_json(
            self.folder / f"rank-{self.rank:05d}.json",
            {
                "rank": self.rank,
                "status": status,
                "stop_signal": self.stop_signal,
                "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
                "time": time.time(),
            },
        )

    def _answer_roll_call(self) -> None:
        if not self.answered and (self.folder / FAILED).exists():
            self.answered = True
            self._record(None)

    def _call_roll(self) -> None:
        """Ask who is still there, and wait for the answers.

        srun ends every rank once one has failed, after which a rank that failed in its program and
        one whose node died would look alike.
        """
        (self.folder / FAILED).touch()
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        while len(rank_records(self.folder)) < self.world and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def clear_records(folder: Path) -> None:
    """Forget the records of an attempt whose ranks are to be started once more."""
    for file in (*folder.glob("rank-*.json"), folder / FAILED):
        file.unlink(missing_ok=True)


def rank_records(folder: Path) -> list[dict[str, object]]:
    """Return the records of an attempt's ranks that have left one, by rank."""
    return [read_object(file) for file in sorted(folder.glob("rank-*.json"))]
