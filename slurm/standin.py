"""N nodes x M tasks as local processes: the stand-in for a cluster.

Every rank gets the environment it would have under Slurm (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), on the loopback interface. The group lives and dies together: one
failing rank ends the rest, Ctrl-C ends all, and the death of the launcher itself ends all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from nml.cli import USER_ERROR_STATUS
from nml.lifeline import MEETING_NAME, die_with_this_process, is_stopped, warden
from slurm.rendezvous import choose_port
from slurm.rooms import code_command, code_environment
from slurm.verdict import ECHO

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.05
# What a stopped rank may take to save its state before it is killed.
STOP_SECONDS = 60.0
# After a failure there is nothing to save: the peers of a dead rank cannot agree on anything.
FAILURE_SECONDS = 5.0
# The peers of a failed rank fail with it; with all their last words at hand the cause can be told.
ECHO_SECONDS = 0.3
TAIL_LINES = 15
_STOPPED_STATUS = os.EX_TEMPFAIL
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Rank:
    """One process of the group.

    Attributes:
        rank: Global rank, 0 to world size - 1.
        process: The process, leader of a session of its own.
        log: Its output, or None for rank 0, which writes to the launcher's own.
    """

    rank: int
    process: subprocess.Popen[bytes]
    log: Path | None


def run_ranks(
    argv: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    nodes: int,
    tasks: int,
    logs: Path,
    gpus: Sequence[str] = (),
    extra: Mapping[str, str] | None = None,
) -> int:
    """Run ``argv`` as nodes x tasks ranks and wait for all of them.

    Args:
        argv: The command of one rank; a function of the rank where they differ.
        nodes: How many nodes to stand in for.
        tasks: Ranks a node.
        logs: Folder for the output of ranks 1 and up, ``rank-1.log`` and so on. Rank 0 writes to
            the launcher's standard output and error.
        gpus: A GPU for each rank, as CUDA_VISIBLE_DEVICES names it; none: all run on the CPU.
        extra: Environment variables on top of the launcher's own.

    Returns:
        0, or the exit status of the first rank that failed (128 + n where signal n ended it).

    Raises:
        KeyboardInterrupt: After Ctrl-C, once every rank has ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    ranks: list[Rank] = []
    name = secrets.token_hex(8)
    port = choose_port(name)
    # What a killed launcher leaves behind has the time to save that a stopped rank has.
    with stops_noted() as stopped, warden(STOP_SECONDS) as guard:
        try:
            for rank in range(nodes * tasks):
                environment = rank_environment(rank, nodes=nodes, tasks=tasks, port=port)
                environment["CUDA_VISIBLE_DEVICES"] = gpus[rank] if gpus else ""
                environment[MEETING_NAME] = name
                environment |= dict(extra or {})
                own = argv(rank) if callable(argv) else argv
                ranks.append(_start(own, rank, environment, logs))
                guard.watch(ranks[-1].process.pid)
            return _supervise(ranks, stopped)
        finally:
            _end(ranks, seconds=FAILURE_SECONDS)


def run_command(argv: Sequence[str]) -> int:
    """Run one command of another room alone, as :func:`run_ranks` runs many, and return its exit status.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once it has ended.
    """
    with stops_noted() as stopped, warden(STOP_SECONDS) as guard:
        alone = Rank(0, _popen(argv, code_environment()), None)
        guard.watch(alone.process.pid)
        try:
            while (status := alone.process.poll()) is None:
                if stopped:
                    raise KeyboardInterrupt
                time.sleep(POLL_SECONDS)
            return status if status >= 0 else 128 - status
        finally:
            _end([alone], seconds=STOP_SECONDS)


def rank_environment(rank: int, *, nodes: int, tasks: int, port: int) -> dict[str, str]:
    """Return the variables that make a process rank ``rank`` of nodes x tasks."""
    world = nodes * tasks
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank % tasks,
        "NODE_RANK": rank // tasks,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": tasks,
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": port,
        # Gloo would otherwise look the host's name up, which need not resolve.
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // world)),
        "PYTHONUNBUFFERED": 1,
        **code_environment(),
    }
    return {name: str(value) for name, value in own.items()}


@contextlib.contextmanager
def stops_noted() -> Iterator[list[int]]:
    """Note stop signals instead of raising while the block runs: nothing is left half started."""
    noted: list[int] = []
    before = {number: signal.signal(number, lambda found, _: noted.append(found)) for number in STOP_SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(argv: Sequence[str], rank: int, environment: Mapping[str, str], logs: Path) -> Rank:
    if not rank:
        return Rank(rank, _popen(argv, environment), None)
    log = logs / f"rank-{rank}.log"
    with log.open("wb") as output:
        return Rank(rank, _popen(argv, environment, output), log)


def _popen(
    argv: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        code_command(argv),
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        # Ctrl-C reaches the launcher alone, which then stops what it started once and in order.
        start_new_session=True,
        preexec_fn=die_with_this_process(),
    )


def _supervise(ranks: Sequence[Rank], told: Sequence[int]) -> int:
    while True:
        if told:
            _end(ranks, seconds=STOP_SECONDS)
            raise KeyboardInterrupt
        failed = [rank for rank in ranks if rank.process.poll() not in (None, 0)]
        if failed:
            time.sleep(ECHO_SECONDS)
            failed = [rank for rank in ranks if rank.process.poll() not in (None, 0)]
            stopped = [rank for rank in ranks if is_stopped(rank.process.pid)]
            _end(ranks, seconds=FAILURE_SECONDS)
            return _report_failure(failed, stopped)
        if all(rank.process.returncode == 0 for rank in ranks):
            return 0
        time.sleep(POLL_SECONDS)


def _end(ranks: Sequence[Rank], *, seconds: float) -> None:
    """End every rank and all it started: first asked to, then, after ``seconds``, killed."""
    alive = [rank for rank in ranks if rank.process.poll() is None]
    for rank in alive:
        rank.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(rank.process.poll() is None for rank in alive) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for rank in ranks:
        # Each rank leads a process group: its loader workers go with it, also where it died first.
        try:
            os.killpg(rank.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    for rank in alive:
        rank.process.wait()


def _report_failure(failed: Sequence[Rank], stopped: Sequence[Rank]) -> int:
    """Say which rank failed and why; return its exit status."""
    if stopped:
        # The others waited for it, and can only tell of that.
        names = ", ".join(str(rank.rank) for rank in stopped)
        print(f"rank {names} of the run was stopped (SIGSTOP) and did not go on", file=sys.stderr)
    first = min(failed, key=_is_echo)
    status = first.process.returncode
    if status == USER_ERROR_STATUS:
        # The room has said in one line what is wrong; where rank 0 did, it is on the terminal.
        if first.log is not None and not any(rank.log is None for rank in failed):
            print(*tail(first.log, 1), file=sys.stderr)
        return status
    if all(rank.process.returncode == _STOPPED_STATUS for rank in failed):
        # Told to stop, saved and said so: no failure, but the run is not complete either.
        return status
    how = f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
    print(f"rank {first.rank} of the run ended with {how}; the other ranks were stopped", file=sys.stderr)
    if first.log is not None:
        for line in tail(first.log):
            print(f"  {line}", file=sys.stderr)
        print(f"  log: {first.log}", file=sys.stderr)
    return status if status > 0 else 128 - status


def _is_echo(rank: Rank) -> float:
    """Return how likely a rank failed only because another one did: 0 no, 1 yes, 0.5 cannot be told."""
    # NCCL aborts a process whose peers do not answer; any other signal came from outside.
    if rank.process.returncode < 0 and rank.process.returncode != -signal.SIGABRT:
        return 0
    if rank.log is None:
        return 0.5
    last = rank.log.read_bytes().rstrip().rsplit(b"\n", 3)[-3:]
    return float(any(ECHO.search(line.decode(errors="replace")) for line in last))


def tail(log: Path, lines: int = TAIL_LINES) -> Iterator[str]:
    """Yield the last lines of a log, whatever bytes it holds."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 100_000))
        yield from file.read().decode(errors="replace").splitlines()[-lines:]
