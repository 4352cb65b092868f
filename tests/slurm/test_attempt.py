"""The records of a job's attempts, and its way back into the queue, with Slurm's answers written here."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import requeue as requeueing
from slurm.attempt import BEGAN, Attempt, starts
from slurm.members import Member
from slurm.requeue import requeue


@pytest.fixture
def member(tmp_path: Path) -> Member:
    return Member(
        name="run",
        argv=("true",),
        record=str(tmp_path / "attempts"),
        done=str(tmp_path / "run" / "DONE.json"),
        progress=str(tmp_path / "run" / "checkpoints"),
        distributed=True,
        cwd=str(tmp_path),
    )


@pytest.fixture
def at(member: Member, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Attempt]:
    """Open the attempt of a number, with checkpoints up to a step."""
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    def open_attempt(number: int, step: int = 0, job: str = "12") -> Attempt:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        if step:
            folder = Path(member.progress or "") / f"step-{step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "COMPLETE.json").touch()
        attempt = Attempt(member)
        attempt.open("n0")
        return attempt

    return open_attempt


def test_starts_that_find_the_same_checkpoint_are_counted_over_attempts_and_restarts(
    at: Callable[..., Attempt],
) -> None:
    assert at(0).idle_starts() == 1
    second = at(1)
    second.restart("a reason", ["n1"])
    assert second.idle_starts() == 3
    assert at(2, step=4).idle_starts() == 1
    assert at(3, step=4).idle_starts() == 2


def test_starts_of_another_job_do_not_count(at: Callable[..., Attempt]) -> None:
    at(0)
    assert at(0, job="13").idle_starts() == 1
    # Nor of one whose number begins alike.
    assert at(0, job="1").idle_starts() == 1


def test_attempts_are_ordered_by_number_whatever_the_clocks_of_their_nodes_said(
    at: Callable[..., Attempt], member: Member
) -> None:
    steps = {number: at(number, step=number + 1).step for number in (0, 2, 10, 1000)}
    late = Path(member.record) / "12-000" / "open.json"
    late.write_text(json.dumps({**json.loads(late.read_text()), "time": 9e9}))
    assert [one["step"] for one in starts(Path(member.record), "12")] == list(steps.values())


def test_failures_of_nodes_are_counted_over_the_attempts_of_a_job(at: Callable[..., Attempt]) -> None:
    first = at(0)
    # Of a line that a crash cut short nothing is left, nor does it spoil the next one.
    (first.folder / "restarts.jsonl").write_text('{"reason": "a re')
    first.restart("a reason", ["n1", "n2"])
    at(1).restart("another", ["n1"])
    assert at(2).failures() == {"n1": 2, "n2": 1}
    assert at(0, job="13").failures() == {}


def test_ranks_without_a_sign_of_life_are_written_down_when_they_change(at: Callable[..., Attempt]) -> None:
    attempt = at(0)
    file = attempt.folder / "stalled.json"
    attempt.stall({1: ("n1", 12.0, "reading data")})
    [(rank, told)] = json.loads(file.read_text())["ranks"].items()
    assert (rank, told[0], told[2]) == ("1", "n1", "reading data")
    before = file.stat().st_mtime_ns
    attempt.stall({1: ("n1", 14.0, "reading data")})
    assert file.stat().st_mtime_ns == before
    attempt.stall({})
    assert not file.exists()


def test_what_an_attempt_had_of_the_cluster_is_told_as_it_begins(
    at: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    had = {
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_CPUS_PER_NODE": "72(x2),36",
        "SLURM_GPUS_ON_NODE": "4",
        BEGAN: "12.5",
    }
    for name, value in had.items():
        monkeypatch.setenv(name, value)
    opened = json.loads((at(0).folder / "open.json").read_text())
    assert opened["had"] == {"nodes": 3, "cores": 180, "spare": 0, "gpus": 12, "began": 12.5}


def test_the_room_for_the_record_of_an_end_is_kept_until_the_job_has_ended(
    at: Callable[..., Attempt],
) -> None:
    attempt = at(0, step=4)
    room = attempt.folder / "reserve"
    attempt.close("requeue", "stopped by SIGUSR2", 75)
    assert room.exists()
    attempt.close("failed", "requeue refused", 75)
    assert not room.exists()
    closed = json.loads((attempt.folder / "close.json").read_text())
    assert (closed["outcome"], closed["status"], closed["step"]) == ("failed", 75, 4)


def test_the_record_of_an_end_fits_on_a_full_disk(
    full_disk: Path, at: Callable[..., Attempt], member: Member
) -> None:
    attempt = at(0)
    attempt.folder = full_disk / "12-000"
    attempt.open("n0")
    with pytest.raises(OSError, match="No space"):
        (full_disk / "rest").write_bytes(bytes(1 << 20))
    attempt.close("failed", "rank 0 on n0: exit status 1: No space left on device", 1)
    closed = json.loads((attempt.folder / "close.json").read_text())
    assert closed["reason"] == "rank 0 on n0: exit status 1: No space left on device"
    assert sorted(path.name for path in attempt.folder.iterdir()) == ["close.json", "open.json"]


def test_a_quota_that_is_used_up_is_as_good_as_a_full_disk(
    at: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = at(0)

    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("slurm.attempt.write_json", refuse)
    attempt.close("failed", "rank 0 on n0: exit status 1: OSError: [Errno 122] Disk quota exceeded", 1)
    assert "quota" in json.loads((attempt.folder / "close.json").read_text())["reason"]


def test_a_record_with_many_last_words_fits_on_a_full_disk_and_so_does_the_one_after_it(
    full_disk: Path, at: Callable[..., Attempt]
) -> None:
    attempt = at(0)
    attempt.folder = full_disk / "12-000"
    attempt.open("n0")
    with pytest.raises(OSError, match="No space"):
        (full_disk / "rest").write_bytes(bytes(1 << 20))
    ranks = [(rank, "n0", 1, "\x01" * 4000) for rank in range(16)]
    with (full_disk / "log").open("wb") as log:
        before = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            attempt.close("requeue", "lost node n1", 1, ranks)
            attempt.close("failed", "lost node n1; requeue refused", 1, ranks)
        finally:
            os.dup2(before, 1)
            os.close(before)
    closed = json.loads((attempt.folder / "close.json").read_text())
    assert (closed["outcome"], closed["reason"]) == ("failed", "lost node n1; requeue refused")
    assert closed["ranks"][0] == [0, "n0", 1, "\x01" * 4000]


class Slurm:
    """A scontrol that answers from files and notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "bin").mkdir()
        scripts = {
            "scontrol": f"""#!/bin/bash
                cd '{folder}'; echo "$@" >> asked
                if [ -s away ]; then head -1 away >&2; sed -i 1d away; exit 1; fi
                case "$1 $2" in
                'show job') cat job ;;
                'show hostnames') cat excluded ;;
                requeue*) [ ! -s refusal ] || {{ cat refusal >&2; exit 1; }} ;;
                esac
                """,
            "sinfo": f"#!/bin/bash\ncat '{folder}/nodes'\n",
        }
        for name, text in scripts.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.answers("RUNNING")

    def answers(
        self,
        state: str,
        *,
        refusal: str = "",
        away: int = 0,
        excluded: str = "(null)",
        nodes: str = "",
        restarts: int = 0,
    ) -> None:
        shown = (
            f"JobId=12 JobState={state} Restarts={restarts} Partition=main NumNodes=2 ExcNodeList={excluded}"
        )
        (self._folder / "job").write_text(shown)
        (self._folder / "refusal").write_text(refusal)
        (self._folder / "away").write_text(
            "slurm_load_jobs error: Unable to contact slurm controller\n" * away
        )
        (self._folder / "nodes").write_text(nodes)
        (self._folder / "excluded").write_text("n1\nn2\n" if excluded == "n[1-2]" else "n7\nn8\nn9\n")

    def asked(self, verb: str) -> list[str]:
        lines = (self._folder / "asked").read_text().splitlines()
        return [line.removeprefix(verb).strip() for line in lines if line.startswith(verb)]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    monkeypatch.setattr(requeueing, "RETRY_SECONDS", 0.01)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return cluster


@pytest.mark.parametrize("state", ["RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED"])
def test_a_job_is_requeued_from_every_state_that_a_loss_leaves(state: str, slurm: Slurm) -> None:
    slurm.answers(state)
    assert requeue() == ""
    assert slurm.asked("requeue") == ["12"]


def test_an_element_of_an_array_is_requeued_alone(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    requeue()
    assert slurm.asked("requeue") == ["12_1"]


# The restart that is under way is not this attempt's own.
@pytest.mark.parametrize("state", ["PENDING", "REQUEUED", "COMPLETING", "RUNNING"])
def test_a_job_that_is_on_its_way_back_already_is_left_to_it(state: str, slurm: Slurm) -> None:
    slurm.answers(state, restarts=1)
    assert requeue() == ""
    assert slurm.asked("requeue") == []


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_job_that_was_cancelled_is_left_alone(
    state: str, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    slurm.answers(state, restarts=1)
    assert requeue() == f"the job is {state}, so it is left alone"
    assert slurm.asked("requeue") == []


def test_a_refusal_is_told(slurm: Slurm) -> None:
    slurm.answers("RUNNING", refusal="Requested operation is presently disabled")
    assert requeue() == "requeue refused: Requested operation is presently disabled"


def test_a_controller_that_is_away_is_asked_until_it_answers(slurm: Slurm) -> None:
    slurm.answers("RUNNING", away=7)
    assert requeue() == ""
    assert slurm.asked("requeue") == ["12"]
    assert len(slurm.asked("show job")) == 8


NODES = "n0 idle\nn1 allocated\nn2 mixed\n"


@pytest.mark.parametrize(
    ("excluded", "nodes", "update"),
    [
        ("(null)", NODES, ["JobId=12 ExcNodeList=n0"]),
        # A user's own stay left out.
        ("n[7-9]", NODES, ["JobId=12 ExcNodeList=n[7-9],n0"]),
        # Too few would be left to ever start.
        ("(null)", "n0 idle\nn1 idle\nn2 down*\n", []),
        ("n[1-2]", f"{NODES}n3 idle\n", []),
        ("n[1-2]", f"{NODES}n3 idle\nn4 idle\n", ["JobId=12 ExcNodeList=n[1-2],n0"]),
    ],
)
def test_nodes_that_failed_are_left_out_where_there_are_others(
    slurm: Slurm, excluded: str, nodes: str, update: list[str]
) -> None:
    slurm.answers("RUNNING", excluded=excluded, nodes=nodes)
    assert requeue(["n0"]) == ""
    assert slurm.asked("update") == update
