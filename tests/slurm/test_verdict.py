"""What becomes of a job after a round of its ranks."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from nml.layout import newest_step
from slurm.members import Member
from slurm.verdict import Beat, Exit, Seen, cause, frozen, hung, judge

WORLD = 3
TERM, USR2, KILL = int(signal.SIGTERM), int(signal.SIGUSR2), int(signal.SIGKILL)
BUS, SEGV, ABRT = int(signal.SIGBUS), int(signal.SIGSEGV), int(signal.SIGABRT)
TAKEN = "DistNetworkError: The server socket has failed to listen ... EADDRINUSE"
FRAMES = "".join(f"frame #{number}: <unknown function> + 0xd44a3\n" for number in range(9))
ABORTED = f"terminate called after throwing an instance of 'E'\n  what():  NCCL: timed out\n{FRAMES}"
WARDEN = "rank 1 of 3 on n1: process 7 failed, and had not ended 10 s later; it is killed"


def member(folder: Path, *, complete: bool = False, marks: bool = True, distributed: bool = True) -> Member:
    if complete:
        (folder / "DONE.json").write_text("{}")
    return Member(
        name="run",
        argv=("true",),
        record=str(folder),
        done=str(folder / "DONE.json") if marks else None,
        distributed=distributed,
        cwd=str(folder),
    )


def seen(*statuses: int | None, words: str = "", stops: tuple[int, ...] = (), **more: object) -> Seen:
    """Return what was seen of ranks that ended so, None for one that has not ended."""
    exits = {
        rank: Exit(rank, f"n{rank}", status, words)
        for rank, status in enumerate(statuses)
        if status is not None
    }
    return Seen(WORLD, exits, stops=list(stops), **more)


LOST = {"lost": {"n1": "its agent is gone"}}
FROZEN = {"frozen": {1: ("n1", "no sign of life for 40 s (saving)")}}


@pytest.mark.parametrize(
    ("found", "complete", "outcome", "reason"),
    [
        (seen(0, 0, 0), True, "done", "complete"),
        (seen(0, 0, 0), False, "failed", "ended without"),
        (seen(75, 75, 75, stops=(USR2,)), False, "requeue", "stopped by SIGUSR2"),
        # Somebody told a rank of it, not the job.
        (seen(75, 75, 75), False, "requeue", "told to stop, and saved"),
        # The signal came as the last step was saved.
        (seen(0, 0, 0, stops=(TERM,)), True, "done", "complete"),
        (seen(1, 1, 1, words="first\n last"), False, "failed", "rank 0 on n0: exit status 1: last"),
        (seen(1, None, 1, **LOST), False, "restart", "lost node n1: its agent is gone"),
        (
            seen(1, None, None, **FROZEN),
            False,
            "restart",
            "rank 1 was frozen on n1: no sign of life for 40 s",
        ),
        (seen(1, -KILL, 1), False, "restart", "rank 1 was killed on n1 (SIGKILL)"),
        # A machine without memory ends a process by SIGKILL, or by SIGBUS in a file that it maps;
        (seen(1, 1, -BUS), False, "restart", "rank 2 was killed on n2 (SIGBUS)"),
        # any other signal is the program's own fault, and comes again.
        (seen(1, -SEGV, 1, words="NCCL"), False, "failed", "rank 0 on n0: exit status 1: NCCL"),
        (seen(-ABRT, 1, 1), False, "failed", "rank 0 on n0: exit status 134"),
        (
            seen(-ABRT, words=ABORTED),
            False,
            "failed",
            "rank 0 on n0: exit status 134: what():  NCCL: timed out",
        ),
        # So is a failure that its own warden had to end.
        (seen(1, -KILL, 1, words=WARDEN), False, "failed", "rank 0 on n0: exit status 1"),
        # A stop ends what does not end by itself.
        (seen(-KILL, -KILL, 75, stops=(TERM,)), False, "requeue", "stopped by SIGTERM"),
        (seen(75, None, 75, stops=(TERM,), **LOST), False, "requeue", "stopped by SIGTERM"),
        # Complete is told by what the run leaves; a status that says otherwise is looked into.
        (seen(1, 1, 1), True, "failed", "rank 0 on n0: exit status 1"),
        (seen(None, 0, 0, lost={"n0": "its agent is gone"}), True, "done", "complete"),
        (seen(1, 1, 1, words=TAKEN), False, "retry", "the rendezvous port was taken by another program"),
    ],
)
def test_a_job_goes_on_after_stops_and_losses_only(
    tmp_path: Path, found: Seen, complete: bool, outcome: str, reason: str
) -> None:
    verdict = judge(member(tmp_path, complete=complete), found)
    assert verdict.outcome == outcome
    assert verdict.reason.startswith(reason)


def test_an_exception_of_torchs_is_told_from_its_cause_in_another_rank() -> None:
    own = Exit(2, "n2", 1, "ValueError: no such thing")
    assert cause([Exit(0, "n0", -ABRT, ABORTED), own]) == own


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (seen(0, 0, 0), "done"),
        # A signal that ends it is a stop, and it was not done: nothing else would tell.
        (seen(0, 0, 0, stops=(USR2,)), "requeue"),
        (seen(-TERM, -TERM, -TERM, stops=(TERM,)), "requeue"),
        (seen(2, 2, 2), "failed"),
        (seen(0, None, 0, **LOST), "restart"),
    ],
)
def test_a_command_that_leaves_no_mark_is_done_when_it_ends_well_and_was_not_stopped(
    tmp_path: Path, found: Seen, outcome: str
) -> None:
    assert judge(member(tmp_path, marks=False), found).outcome == outcome


def test_a_command_that_meets_nobody_has_a_port_of_its_own_in_mind(tmp_path: Path) -> None:
    assert judge(member(tmp_path, distributed=False), seen(1, 1, 1, words=TAKEN)).outcome == "failed"


@pytest.mark.parametrize("found", [seen(1, None, 1, **LOST), seen(1, -KILL, 1), seen(1, None, 1, **FROZEN)])
def test_the_node_at_fault_is_named(tmp_path: Path, found: Seen) -> None:
    assert judge(member(tmp_path), found).nodes == ("n1",)


def beat(rank: int, **more: Any) -> Beat:
    return Beat(rank, f"n{rank}", **{"pace": 0.0, "phase": "computing", "quiet": 0.0, "still": 0.0, **more})


def test_what_an_agent_tells_of_a_rank_is_taken_at_its_word() -> None:
    told = {"rank": 3, "pace": 1.5, "phase": "saving", "quiet": 2, "still": 4.5}
    assert Beat.read("n1", told) == Beat(3, "n1", 1.5, "saving", 2.0, 4.5)


def test_a_rank_is_frozen_after_its_silence_and_three_steps_of_the_slowest() -> None:
    slow = beat(0, pace=4.0)
    assert frozen([slow, beat(1, quiet=32.0)], 20) == {}
    assert frozen([slow, beat(1, quiet=32.1)], 20) == {1: ("n1", "no sign of life for 32 s (computing)")}
    assert frozen([], 20) == {}


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([], None),
        ([beat(0, still=300), beat(1, still=199)], None),
        ([beat(0, still=300, pace=11), beat(1, still=400)], None),
        ([beat(0, still=300, phase="reading data"), beat(1, still=300, phase="reading data")], None),
        (
            [beat(0, still=300, phase="waiting"), beat(1, still=250, phase="reading data")],
            ("no step for 250 s: rank 1 hangs on n1 (reading data)", ("n1",)),
        ),
        (
            [beat(0, still=200, phase="meeting the others"), beat(1, still=200, phase="starting")],
            ("no step for 200 s: rank 1 hangs on n1 (starting)", ("n1",)),
        ),
        (
            [beat(0, still=400, pace=11), beat(1, still=340, phase="waiting"), beat(2, still=340)],
            ("no step for 340 s: which rank the others wait for is not known (computing, waiting)", ()),
        ),
    ],
)
def test_ranks_hang_where_none_makes_a_step_and_not_all_read(
    beats: list[Beat], expected: tuple[str, tuple[str, ...]] | None
) -> None:
    assert hung(beats, 20) == expected


def test_a_hang_is_answered_by_a_restart(tmp_path: Path) -> None:
    found = seen(None, None, None, hung=("no step for 300 s: ...", ("n1",)))
    assert judge(member(tmp_path), found) == ("restart", "no step for 300 s: ...", ("n1",))


def test_only_complete_checkpoints_are_progress(tmp_path: Path) -> None:
    for step, complete in ((4, True), (8, True), (12, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "COMPLETE.json").touch()
    assert newest_step(tmp_path) == 8
    assert newest_step(tmp_path / "nowhere") == 0
