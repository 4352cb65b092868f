"""One attempt of a job, opened and closed as its batch script does it, with Slurm's answers written here."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm import attempt
from slurm.attempt import RETRY_STATUS, main
from slurm.members import Member, Probe, Submission
from slurm.rendezvous import choose_port
from slurm.snapshot import take_snapshot

MAX_IDLE = 3
LOG = "12_0_log.out"


class Slurm:
    """A scontrol that answers from ``state`` and notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = "RUNNING"
        self.refusal = ""
        (folder / "bin").mkdir()
        (folder / "bin" / "scontrol").write_text(
            f"#!/bin/sh\necho \"$@\" >> '{folder}/asked'\n"
            'case "$1 $2" in\n'
            "'show hostnames') echo node-a; echo node-b ;;\n"
            "'show node') echo NodeName=node-a NodeAddr=127.0.0.7 ;;\n"
            f"'show job') echo \"JobId=12 JobState=$(cat '{folder}/state') Reason=None\" ;;\n"
            f"requeue*) [ ! -s '{folder}/refusal' ] || {{ cat '{folder}/refusal' >&2; exit 1; }} ;;\n"
            "esac\n"
        )
        (folder / "bin" / "scontrol").chmod(0o755)

    def answers(self, state: str, refusal: str = "") -> None:
        (self._folder / "state").write_text(state)
        (self._folder / "refusal").write_text(refusal)

    @property
    def requeued(self) -> list[str]:
        asked = self._folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line.removeprefix("requeue ") for line in lines if line.startswith("requeue")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm(tmp_path)
    cluster.answers("RUNNING")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node-[a-b]")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return cluster


class Clock:
    """A time module whose sleeps are noted instead of slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.time = time.time
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(attempt, "time", own)
    return own


@dataclasses.dataclass
class Job:
    """A submission of two members on the disk, and what a batch script does with it."""

    folder: Path
    printed: Callable[[], Any]
    said: str = ""

    def __post_init__(self) -> None:
        members = tuple(
            Member(
                name=f"run {index}",
                argv=("true",),
                record=str(self.folder / f"attempts-{index}"),
                done=str(self.folder / f"run-{index}" / "DONE.json"),
                progress=str(self.folder / f"run-{index}" / "checkpoints"),
                distributed=True,
                cwd=str(self.folder),
            )
            for index in range(2)
        )
        room = self.folder / "code" / "pretrain"
        room.mkdir(parents=True)
        (room / "run.py").write_text("")
        self.snapshot = take_snapshot(self.folder / "snapshots", room.parent)
        self.submission = Submission(
            stage="pretrain",
            token="nml-0123",
            snapshot=str(self.snapshot),
            members=members,
            max_idle_attempts=MAX_IDLE,
        )
        self.write()

    def write(self) -> None:
        self.submission.write(self.folder / "nml-0123.json")

    def open(self) -> tuple[int, str, int]:
        """Return the exit status, and the address and port that the script reads."""
        self.printed()
        status = main(["open", str(self.folder / "nml-0123.json")])
        written = self.printed()
        self.said = written.err
        words = written.out.split()
        return (status, words[0], int(words[1])) if status == 0 else (status, "", 0)

    def close(self, status: int) -> int:
        return main(["close", str(self.folder / "nml-0123.json"), str(status)])

    def record(self, kind: str, name: str = "12-000", index: int = 0) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.folder / f"attempts-{index}" / name / f"{kind}.json").read_text()
        )
        return content

    def ranks(self, *status: int, stop: int | None = None, name: str = "12-000", index: int = 0) -> None:
        for rank, one in enumerate(status):
            path = self.folder / f"attempts-{index}" / name / f"rank-{rank:05d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"rank": rank, "status": one, "stop_signal": stop, "host": f"n{rank}"})
            )

    def checkpoint(self, step: int, index: int = 0) -> None:
        folder = self.folder / f"run-{index}" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE.json").touch()

    def done(self) -> None:
        (self.folder / "run-0").mkdir(exist_ok=True)
        (self.folder / "run-0" / "DONE.json").write_text("{}")


@pytest.fixture
def job(tmp_path: Path, slurm: Slurm, capfd: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path, capfd.readouterr)


def test_no_attempt_begins_with_code_that_is_not_what_was_submitted(job: Job) -> None:
    (job.snapshot / "pretrain" / "run.py").write_text(" ")
    assert job.open()[0] == 1
    assert "is not what was submitted: pretrain/run.py is changed" in job.said
    assert not list(job.folder.glob("attempts-0/*"))


def test_ranks_are_told_the_first_node_s_address_and_a_port_and_the_attempt_is_noted(job: Job) -> None:
    job.checkpoint(8)
    (job.folder / LOG).write_text("of an attempt before")
    before = time.time()
    assert job.open() == (0, "127.0.0.7", choose_port("12-000 1"))
    noted = job.record("open")
    assert before <= noted.pop("time") <= time.time()
    assert noted == {
        "job": "12",
        "attempt": "12-000",
        "node": "node-a",
        "port": choose_port("12-000 1"),
        "step": 8,
        "rendezvous": {"tries": 1, "fixed": False, "log_bytes": len("of an attempt before")},
    }


def test_an_element_of_an_array_has_its_own_member_and_its_own_name(
    job: Job, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    job.checkpoint(4, index=1)
    job.open()
    assert job.record("open", "12_1-002", index=1)["step"] == 4
    job.ranks(75, 75, stop=int(signal.SIGUSR2), name="12_1-002", index=1)
    job.close(0)
    assert slurm.requeued == ["12_1"]


def test_the_next_try_of_an_attempt_forgets_the_ranks_of_the_last_and_meets_elsewhere(job: Job) -> None:
    job.open()
    job.ranks(1, 1)
    (job.folder / LOG).write_text("EADDRINUSE")
    assert job.close(1) == RETRY_STATUS
    assert job.record("close")["outcome"] == "retry"
    assert job.open()[2] == choose_port("12-000 2") != choose_port("12-000 1")
    assert sorted(path.name for path in (job.folder / "attempts-0" / "12-000").iterdir()) == ["open.json"]
    assert job.record("open")["rendezvous"] == {"tries": 2, "fixed": False, "log_bytes": len("EADDRINUSE")}


def test_a_user_s_own_port_is_kept_and_the_exported_one_of_the_first_try_is_not_taken_for_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "23456")
    assert job.open()[2] == 23456
    assert job.record("open")["rendezvous"]["fixed"]
    (job.folder / "attempts-0" / "12-000" / "open.json").unlink()
    monkeypatch.delenv("MASTER_PORT")
    port = job.open()[2]
    # As the batch script exports it.
    monkeypatch.setenv("MASTER_PORT", str(port))
    assert job.open()[2] == choose_port("12-000 2")
    assert not job.record("open")["rendezvous"]["fixed"]


def attempts_at(job: Job, monkeypatch: pytest.MonkeyPatch, *steps: int) -> list[int]:
    """Open one attempt after another, each with checkpoints up to a step; return the exit statuses."""
    statuses = []
    for number, step in enumerate(steps):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        if step and not (job.folder / "run-0" / "checkpoints" / f"step-{step:08d}").exists():
            job.checkpoint(step)
        statuses.append(job.open()[0])
    return statuses


def test_a_job_is_given_up_after_as_many_attempts_without_a_checkpoint_as_allowed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempts_at(job, monkeypatch, *[0] * (MAX_IDLE + 1)) == [*[0] * MAX_IDLE, 1]
    assert "run 0: given up after 3 attempts in a row without a new checkpoint (step 0)" in job.said


def test_a_new_checkpoint_begins_the_count_anew(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_at(job, monkeypatch, 0, 0, 0, 4, 4, 8, 8, 8, 8) == [*[0] * 8, 1]


def test_attempts_of_an_earlier_job_do_not_count(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts_at(job, monkeypatch, *[0] * MAX_IDLE)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert job.open()[0] == 0


def test_another_try_on_the_same_nodes_is_no_attempt_of_its_own(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts_at(job, monkeypatch, *[0] * MAX_IDLE)
    assert [job.open()[0] for _ in range(4)] == [0] * 4


@pytest.mark.parametrize(
    ("srun", "complete", "status", "outcome"),
    [
        (0, True, 0, "done"),
        (3, False, 3, "failed"),
        # A program that ended well and left nothing must not look like one that is complete,
        (0, False, 1, "failed"),
        # nor one that ends as a port that is taken would have the script start it again.
        (RETRY_STATUS, False, 1, "failed"),
    ],
)
def test_the_script_ends_as_its_job_did(
    srun: int,
    complete: bool,
    status: int,
    outcome: str,
    job: Job,
    slurm: Slurm,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job.checkpoint(16)
    job.open()
    job.ranks(srun, srun)
    if complete:
        job.done()
    assert job.close(srun) == status
    noted = job.record("close")
    assert (noted["outcome"], noted["status"], noted["step"]) == (outcome, srun, 16)
    assert f"run 0: attempt 12-000: {outcome}: {noted['reason']}" in capfd.readouterr().out
    assert slurm.requeued == []


def test_a_stopped_job_is_noted_requeued_and_waits_for_its_end(job: Job, slurm: Slurm, clock: Clock) -> None:
    seen = []
    clock.on_sleep = lambda: seen.append((slurm.requeued, job.record("close")["outcome"]))
    job.open()
    job.ranks(75, 75, stop=int(signal.SIGTERM))
    # Slurm kills the script in its sleep; one that lived on has failed, and says so.
    assert job.close(0) == 1
    assert seen == [(["12"], "requeue")]
    assert clock.slept == [attempt.KILL_SECONDS]
    assert job.record("close")["outcome"] == "failed"


@pytest.mark.parametrize("state", ["RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED"])
def test_a_job_is_requeued_from_every_state_that_a_loss_leaves(
    state: str, job: Job, slurm: Slurm, clock: Clock
) -> None:
    slurm.answers(state)
    job.open()
    job.ranks(1)
    job.close(137)
    assert slurm.requeued == ["12"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "REQUEUED", "PENDING"])
def test_a_job_that_was_cancelled_or_is_on_its_way_back_is_left_alone(
    state: str, job: Job, slurm: Slurm, clock: Clock
) -> None:
    slurm.answers(state)
    job.open()
    job.ranks(1)
    assert job.close(137) == 137
    assert (slurm.requeued, clock.slept) == ([], [])
    assert job.record("close")["reason"] == f"lost rank 1; the job is {state}, so it is left alone"


def test_a_refused_requeue_is_a_failure_that_says_why(job: Job, slurm: Slurm, clock: Clock) -> None:
    slurm.answers("RUNNING", refusal="Requested operation is presently disabled")
    job.open()
    job.ranks(1)
    assert job.close(137) == 137
    assert clock.slept == []
    noted = job.record("close")
    assert noted["outcome"] == "failed"
    assert noted["reason"] == "lost rank 1; requeue refused: Requested operation is presently disabled"


def test_receipts_of_a_probe_are_there_before_it_counts_as_done(job: Job) -> None:
    results = job.folder / "results"
    probe = Probe(
        results=str(results),
        run=str(job.folder),
        task="digits",
        heads=("lp",),
        receipts=str(job.folder / "receipts"),
    )
    members = tuple(dataclasses.replace(one, probe=probe) for one in job.submission.members)
    job.submission = dataclasses.replace(job.submission, members=members)
    job.write()
    (job.folder / "receipts.ids.json").write_text('{"lp": ["row"]}')
    job.open()
    job.ranks(1, 1)
    assert job.close(1) == 1
    assert not (job.folder / "receipts" / "lp.json").exists()
    job.ranks(0, 0)
    job.done()
    assert job.close(0) == 0
    assert json.loads((job.folder / "receipts" / "lp.json").read_text())["rows"] == ["row"]
