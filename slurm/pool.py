"""Several parts of a sweep at once on this machine, each with its share of the cores or GPUs of its own.

A part runs in a process that is forked for it, and what that starts ends with it. So a part that fails or
is killed ends no other, and the launcher, which only waits, ends all.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from nml import cli
from nml.errors import UserError
from nml.lifeline import end_with
from slurm.machine import gpus_of_ranks, visible_gpus
from slurm.plan import Part
from slurm.progress import describe_seconds
from slurm.standin import STOP_SIGNALS, stops_noted

_LOOK_SECONDS = 0.5
INTERRUPTED_STATUS = 128 + signal.SIGINT
_LEFT_OUT_STATUS = 1


class Slot(NamedTuple):
    """What a part may use of the machine.

    Attributes:
        threads: Threads of each of its processes; 0 leaves that to them.
        gpus: Its GPUs, as CUDA_VISIBLE_DEVICES names them.
        log_folder: Where its output goes, a file a part; None: to the launcher's own.
    """

    threads: int = 0
    gpus: tuple[str, ...] = ()
    log_folder: Path | None = None


class _Running(NamedTuple):
    part: Part
    slot: Slot
    process: multiprocessing.process.BaseProcess
    began: float


def run_parts(
    parts: Sequence[Part], run: Callable[[Part, Slot], int], slots: Sequence[Slot]
) -> dict[str, int]:
    """Run what is missing, as many parts at once as there are slots, and return the statuses of what failed.

    A part begins when its parents are complete; of those that may, the first. Parts of a failed one are left
    out, but for the report, which shows what there is.

    Args:
        parts: The plan, parents first.
        run: Runs a part in a slot and returns its exit status.
        slots: One or more.

    Raises:
        KeyboardInterrupt: After a stop signal, once every part has ended.
    """
    failed: dict[str, int] = {}
    waiting = [part for part in parts if not part.complete]
    running: list[_Running] = []
    free = list(slots)
    with stops_noted() as stopped:
        try:
            while waiting or running:
                for part in _without_parents(waiting, failed):
                    waiting.remove(part)
                    failed[part.member.name] = _LEFT_OUT_STATUS
                busy = {part.member.name for part in (*waiting, *(one.part for one in running))}
                ready = [part for part in waiting if busy.isdisjoint(part.parents)]
                for part in ready[: len(free)]:
                    waiting.remove(part)
                    running.append(_start(part, run, free.pop(0)))
                for one in _ended(running, stopped):
                    running.remove(one)
                    free.append(one.slot)
                    if status := _status(one):
                        failed[one.part.member.name] = status
                if stopped:
                    raise KeyboardInterrupt
        finally:
            _end(running)
    return failed


def depth_first(parts: Sequence[Part]) -> list[Part]:
    """Return a plan with the probes of each run behind it, so that what has ended early is a study, too."""
    runs = [part for part in parts if part.stage == "pretrain"]
    names = {part.member.name for part in runs}
    followers: dict[str, list[Part]] = {}
    for part in parts:
        for name in names.intersection(part.parents) if part.stage == "probes" else ():
            followers.setdefault(name, []).append(part)
    before = [part for part in parts if part.stage == "shards"]
    after = [part for part in parts if part.stage == "report"]
    ordered = [part for run in runs for part in (run, *followers.get(run.member.name, ()))]
    # Of encoders that are given.
    others = [part for part in parts if part.stage == "probes" and not names.intersection(part.parents)]
    return [*before, *ordered, *others, *after]


def slots_of(jobs: int | None, world: int, log_folder: Path, *, wanted: bool) -> list[Slot]:
    """Return a slot for each part that is to run at once.

    Args:
        jobs: How many; None: as many runs as the GPUs allow, and one without GPUs, since nobody knows what
            memory a run takes.
        world: Processes of a run.
        log_folder: Where the output of parts goes where there are several.
        wanted: Whether GPUs were asked for.

    Raises:
        UserError: If the machine has fewer cores or GPUs.
    """
    cores, gpus = len(os.sched_getaffinity(0)), visible_gpus()
    if jobs is None:
        jobs = max(1, len(gpus) // world)
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: not a number of runs", possible="1 and more")
    if jobs == 1:
        return [Slot(gpus=tuple(gpus_of_ranks(world, wanted=wanted)))]
    what, has = ("GPU", len(gpus)) if gpus or wanted else ("core", cores)
    if jobs * world > has:
        mend = " --jobs on the CPU: CUDA_VISIBLE_DEVICES= before the command" if what == "GPU" else ""
        raise UserError(
            f"--jobs {jobs}: {jobs * world} processes at once, and this machine has {has} {what}s",
            possible=f"1 to {max(1, has // world)}",
            mend=mend.strip(),
        )
    threads = max(1, cores // (jobs * world))
    return [Slot(threads, tuple(gpus[at * world : (at + 1) * world]), log_folder) for at in range(jobs)]


def _without_parents(waiting: Sequence[Part], failed: dict[str, int]) -> list[Part]:
    return [
        part for part in waiting if part.stage != "report" and any(name in failed for name in part.parents)
    ]


def _start(part: Part, run: Callable[[Part, Slot], int], slot: Slot) -> _Running:
    name = part.member.name
    log = slot.log_folder and slot.log_folder / f"{Path(part.member.record).name}.log"
    if part.member.distributed and slot.log_folder:
        # All runs call the folder of their records alike.
        log = Path(part.member.record).parents[1] / "logs" / "rank-0.log"
    print(f"== {name}" + (f" (log: {log})" if log else ""), flush=True)
    process = multiprocessing.get_context("fork").Process(
        target=_run_alone, args=(part, run, slot, log, os.getpid())
    )
    process.start()
    return _Running(part, slot, process, time.monotonic())


def _run_alone(
    part: Part, run: Callable[[Part, Slot], int], slot: Slot, log: Path | None, launcher: int
) -> None:
    """Run a part as the process that was forked for it."""
    end_with(launcher, signal.SIGTERM)
    # The launcher passes on what it is told.
    os.setpgid(0, 0)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
    if slot.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(slot.threads))
    if slot.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)

    def main() -> int:
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.default_int_handler)
            return run(part, slot)
        except KeyboardInterrupt:
            return INTERRUPTED_STATUS

    cli.run(main)


def _ended(running: Sequence[_Running], stopped: Sequence[int]) -> list[_Running]:
    """Wait for the end of a part, or for a stop, and return the parts that have ended."""
    sentinels = {one.process.sentinel: one for one in running}
    found = [] if stopped else connection.wait(list(sentinels), _LOOK_SECONDS)
    return [sentinels[one] for one in found if isinstance(one, int)]


def _status(one: _Running) -> int:
    one.process.join()
    code = one.process.exitcode or 0
    status = code if code >= 0 else 128 - code
    if one.slot.log_folder or status:
        took = describe_seconds(time.monotonic() - one.began)
        print(
            f"{f'exit status {status}' if status else 'done'} after {took}: {one.part.member.name}",
            flush=True,
        )
    return status


def _end(running: Sequence[_Running]) -> None:
    """End what still runs: each part ends what it has started, in its own time."""
    for one in running:
        if one.process.is_alive():
            one.process.terminate()
    for one in running:
        one.process.join()
