"""What becomes of a job after an attempt."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from nml.layout import newest_step
from slurm.members import Member
from slurm.verdict import RENDEZVOUS_TRIES, Rendezvous, judge

WORLD = 3
TERM, USR2, KILL = int(signal.SIGTERM), int(signal.SIGUSR2), int(signal.SIGKILL)
BUS, SEGV, ABRT = int(signal.SIGBUS), int(signal.SIGSEGV), int(signal.SIGABRT)


def member(folder: Path, *, complete: bool = False) -> Member:
    if complete:
        (folder / "DONE.json").write_text("{}")
    return Member(
        name="run", argv=("true",), record=str(folder), done=str(folder / "DONE.json"), cwd=str(folder)
    )


def record(folder: Path, *ranks: tuple[int | None, int | None] | None) -> None:
    """Write the records of ranks: (exit status, stop signal), or None for a lost rank."""
    for rank, one in enumerate(ranks):
        if one is not None:
            status, stop = one
            content = {"rank": rank, "status": status, "stop_signal": stop, "host": f"n{rank}"}
            (folder / f"rank-{rank:05d}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("ranks", "status", "complete", "outcome", "reason"),
    [
        ([(0, None)] * 3, 0, True, "done", "complete"),
        ([(0, None)] * 3, 0, False, "failed", "ended without"),
        ([(75, USR2)] * 3, 0, False, "requeue", "stopped by SIGUSR2"),
        # The signal came as the last step was saved.
        ([(0, TERM)] * 3, 0, True, "done", "complete"),
        ([(1, None), (1, None), (1, None)], 1, False, "failed", "exit status 1"),
        ([(1, None), None, (1, None)], 137, False, "requeue", "lost rank 1"),
        # A node's death is told from the stop that its step then gets.
        ([(1, TERM), None, (1, TERM)], 137, False, "requeue", "lost rank 1"),
        ([(1, None), (-KILL, None), (1, None)], 137, False, "requeue", "rank 1 was killed on n1"),
        # A machine without memory ends a process by SIGKILL, or by SIGBUS in a file that it maps;
        ([(1, None), (1, None), (-BUS, None)], 135, False, "requeue", "rank 2 was killed on n2"),
        # any other signal is the program's own fault, and comes again.
        ([(1, None), (-SEGV, None), (1, None)], 139, False, "failed", "exit status 139"),
        ([(-ABRT, None), (1, None), (1, None)], 134, False, "failed", "exit status 134"),
        # The first rank's own words count, whatever srun makes of them.
        ([(1, None), (-KILL, None), (1, None)], 0, False, "requeue", "rank 1 was killed on n1"),
        ([(75, None), (75, TERM), (75, None)], 0, False, "requeue", "stopped by SIGTERM"),
        ([(-KILL, None), (-KILL, TERM), (75, None)], 137, False, "requeue", "stopped by SIGTERM"),
        # Complete is told by what the run leaves; a status that says otherwise is looked into.
        ([(1, None), (1, None), (1, None)], 1, True, "failed", "exit status 1"),
        ([None, (0, None), (0, None)], 0, True, "done", "complete"),
        # Hanging ranks answer the roll call of the one that failed.
        ([(1, None), (None, None), (None, None)], 1, False, "failed", "exit status 1"),
    ],
)
def test_a_job_comes_back_after_stops_and_losses_only(
    tmp_path: Path,
    ranks: list[tuple[int, int | None] | None],
    status: int,
    complete: bool,
    outcome: str,
    reason: str,
) -> None:
    record(tmp_path, *ranks)
    verdict = judge(
        member(tmp_path, complete=complete),
        tmp_path,
        status,
        world=WORLD,
        log=tmp_path / "no log",
        rendezvous=Rendezvous(),
    )
    assert verdict.outcome == outcome
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("ranks", "status", "outcome"),
    [
        ([(0, None)] * 3, 0, "done"),
        # A signal that ends it is a stop, and it was not done: nothing else would tell.
        ([(0, USR2)] * 3, 0, "requeue"),
        ([(-TERM, TERM)] * 3, 0, "requeue"),
        ([(2, None)] * 3, 2, "failed"),
    ],
)
def test_a_command_that_leaves_no_mark_is_done_when_it_ends_well_and_was_not_stopped(
    tmp_path: Path, ranks: list[tuple[int, int | None]], status: int, outcome: str
) -> None:
    record(tmp_path, *ranks)
    unmarked = dataclasses.replace(member(tmp_path), done=None)
    found = judge(unmarked, tmp_path, status, world=WORLD, log=tmp_path / "no log", rendezvous=Rendezvous())
    assert found.outcome == outcome


TAKEN = "DistNetworkError: The server socket has failed to listen ... EADDRINUSE\n"


@pytest.mark.parametrize(
    ("rendezvous", "outcome"),
    [
        (Rendezvous(tries=1), "retry"),
        (Rendezvous(tries=RENDEZVOUS_TRIES), "requeue"),
        # The port is the user's: it may be free later.
        (Rendezvous(tries=1, fixed=True), "requeue"),
        # The log was begun anew since then.
        (Rendezvous(tries=1, log_bytes=10_000), "retry"),
        (Rendezvous(tries=RENDEZVOUS_TRIES - 1), "retry"),
        # It was taken in an earlier attempt, whose words the log still has.
        (Rendezvous(tries=1, log_bytes=len(TAKEN)), "failed"),
    ],
)
def test_a_port_taken_in_between_is_no_failure_of_the_program(
    tmp_path: Path, rendezvous: Rendezvous, outcome: str
) -> None:
    record(tmp_path, *[(1, None)] * WORLD)
    log = tmp_path / "log"
    log.write_text(TAKEN)
    run = dataclasses.replace(member(tmp_path), distributed=True)
    assert judge(run, tmp_path, 1, world=WORLD, log=log, rendezvous=rendezvous).outcome == outcome
    # A command that meets nobody has a port of its own in mind.
    alone = judge(member(tmp_path), tmp_path, 1, world=WORLD, log=log, rendezvous=rendezvous)
    assert alone.outcome == "failed"


def test_only_complete_checkpoints_are_progress(tmp_path: Path) -> None:
    for step, complete in ((4, True), (8, True), (12, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "COMPLETE.json").touch()
    assert newest_step(tmp_path) == 8
    assert newest_step(tmp_path / "nowhere") == 0
