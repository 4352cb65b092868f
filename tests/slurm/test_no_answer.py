"""A controller that does not answer: silence is neither an empty queue nor a cancelled job."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import controller
from slurm.controller import NoAnswer
from slurm.journal import Job
from slurm.states import is_active

SEVEN = Job("7", "nml-ab", Path("/runs/a/launch"))
BUSY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
# Says that it timed out, and is heard after it was looked for.
HEARD_LATE = """
if [ ! -e "$HERE/mark" ]; then
  touch "$HERE/mark"
  (sleep 1; "$REAL" --hold "$@") > /dev/null 2>&1 &
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
  exit 1
fi
exec "$REAL" "$@"
"""
TAKEN_UNHEARD = """
"$REAL" --hold "$@" > /dev/null
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a script in the place of one of Slurm's programs, with no pauses between two tries."""
    monkeypatch.setattr(controller, "RETRY_SECONDS", 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{script}")
        (tmp_path / name).chmod(0o755)

    return write


def test_a_queue_that_answers_after_a_while_is_believed(program) -> None:
    program(
        "squeue",
        f"echo >> tries\nif [ $(wc -l < tries) -lt 3 ]; then {BUSY}fi\necho '7|N/A|PENDING|Priority||nml-ab'",
    )
    assert is_active(SEVEN)


def test_a_queue_that_never_answers_is_one_line_and_no_empty_queue(program) -> None:
    program("squeue", BUSY)
    with pytest.raises(
        NoAnswer, match=r"^squeue failed: .*Unable to contact.*; say it again once Slurm answers$"
    ):
        is_active(SEVEN)


@pytest.mark.parametrize("said", ["Invalid job id specified", "Job/step already completing or completed"])
def test_a_job_that_has_ended_by_itself_is_as_good_as_cancelled(program, said: str) -> None:
    program("scancel", f"echo 'scancel: error: Kill job error on job id 7: {said}' >&2\nexit 1")
    controller.cancel(["7"])


def test_a_job_that_may_not_be_cancelled_is_named(program) -> None:
    program(
        "scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2\nexit 1"
    )
    with pytest.raises(
        NoAnswer, match="permission denied; they may still run; once Slurm answers: scancel 7 8"
    ):
        controller.cancel(["7", "8"])


@pytest.fixture
def closed(cluster) -> Iterator[None]:
    """Have every job wait in the queue."""
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    yield
    cluster.call("scontrol", "update", "PartitionName=main", "State=UP")


def jobs(cluster) -> list[str]:
    return cluster.call("squeue", "--noheader", "--format=%A").split()


@pytest.mark.slurm
class TestOnSlurm:
    @pytest.mark.parametrize("words", [("pretrain",), ("sweep", "--noise", "0"), ("cancel", "runs/{run}")])
    def test_while_the_queue_does_not_answer_nothing_is_submitted_or_called_cancelled(
        self, project, closed, cluster, stand_in: Callable[[str, str], Path], words: tuple[str, ...]
    ) -> None:
        first = ("pretrain",) if words[0] == "cancel" else words
        project.launch(*first)
        before = jobs(cluster)
        assert before
        path = f"{stand_in('squeue', BUSY)}:{cluster.environment['PATH']}"
        given = [word.format(run="quickstart-n00-seed0") for word in words]
        said = project.launch(*given, status=2, PATH=path)
        assert said.strip().splitlines()[-1].startswith("error: squeue failed: slurm_load_jobs error: Unable")
        assert "cancelled" not in said
        assert jobs(cluster) == before

    def test_a_job_that_scancel_did_not_reach_is_not_called_cancelled(
        self, project, closed, cluster, stand_in: Callable[[str, str], Path]
    ) -> None:
        project.launch("pretrain")
        path = f"{stand_in('scancel', BUSY)}:{cluster.environment['PATH']}"
        said = project.launch("cancel", "runs/quickstart-n00-seed0", status=2, PATH=path)
        assert f"once Slurm answers: scancel {jobs(cluster)[0]}" in said
        assert "cancelled" not in said

    def test_status_then_tells_what_the_runs_themselves_do(
        self, project, cluster, waiting, stand_in: Callable[[str, str], Path]
    ) -> None:
        project.launch("pretrain")
        waiting((project.work / "runs" / "quickstart-n00-seed0" / "DONE.json").exists, "the end of the run")
        path = f"{stand_in('squeue', BUSY)}:{cluster.environment['PATH']}"
        said = project.launch("status", PATH=path)
        assert "squeue failed: " in said
        assert "COMPLETED" in said

    def test_a_submission_that_is_heard_late_runs_once(
        self, project, cluster, waiting, stand_in: Callable[[str, str], Path]
    ) -> None:
        path = f"{stand_in('sbatch', HEARD_LATE)}:{cluster.environment['PATH']}"
        # Also where the comment by which it is found is one of the user's.
        (project.work / "cluster.yaml").write_text("sbatch: {comment: project X}\n")
        words = ("pretrain", "--cluster-file", "cluster.yaml")
        said = project.launch(*words, PATH=path, NML_SUBMIT_RETRY_SECONDS="4")
        [job] = re.findall(r"submitted job (\d+)", said)
        waiting((project.work / "runs" / "quickstart-n00-seed0" / "DONE.json").exists, "the end of the run")
        early = str(int(job) - 1)
        assert "JobState=CANCELLED" in cluster.call("scontrol", "show", "job", early)

    def test_what_nobody_could_look_for_is_cancelled_before_the_next_submission(
        self, project, cluster, waiting, stand_in: Callable[[str, str], Path]
    ) -> None:
        stand_in("squeue", BUSY)
        path = f"{stand_in('sbatch', TAKEN_UNHEARD)}:{cluster.environment['PATH']}"
        assert "error: squeue failed: " in project.launch("pretrain", status=2, PATH=path)
        [orphan] = jobs(cluster)
        project.launch("pretrain")
        waiting((project.work / "runs" / "quickstart-n00-seed0" / "DONE.json").exists, "the end of the run")
        assert "JobState=CANCELLED" in cluster.call("scontrol", "show", "job", orphan)

    def test_a_log_that_has_not_begun_is_waited_for(self, project, closed, cluster) -> None:
        said = project.launch("pretrain")
        assert "follow it: python slurm/launch.py logs " in said
        follower = project.start("logs", "runs/quickstart-n00-seed0", "--follow")
        assert "has not begun" in follower.stderr.readline()
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
        followed, _ = follower.communicate(timeout=60)
        assert follower.returncode == 0
        assert "done: complete" in followed
