"""What goes wrong on clusters, on a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm
WAIT_SECONDS = 60

# Accepts the job or not, and then fails to say so, the first time.
BUSY_ONCE = """
if [ ! -e "$HERE/mark" ]; then
  touch "$HERE/mark"
  {before}
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
  exit 1
fi
echo "By the way: job 77 of the site is at work"
exec "$REAL" "$@"
"""
# Hangs after Slurm's yes.
UNHEARD = """
"$REAL" --hold "$@" > /dev/null
touch "$HERE/taken"
while [ ! -e "$HERE/end" ]; do sleep 0.05; done
exit 1
"""
# Hangs the second time.
HANGS_LATER = """
if [ -e "$HERE/mark" ]; then
  touch "$HERE/hangs"
  while [ -e "$HERE/mark" ]; do sleep 0.05; done
  exit 1
fi
touch "$HERE/mark"
exec "$REAL" --hold "$@"
"""


def run_of(said: str) -> Path:
    """Return the folder of the run that a launcher ends by naming."""
    return Path(said.strip().rsplit("run: ", 1)[1])


def job_of(said: str) -> str:
    """Return the id of the job that a launcher submitted."""
    [job] = re.findall(r"submitted job (\d+)", said)
    return job


@pytest.mark.parametrize("before", [":", '"$REAL" "$@"'], ids=["refused", "accepted"])
def test_a_submission_that_times_out_is_repeated_and_runs_once(
    project, cluster, waiting, stand_in: Callable[[str, str], Path], before: str
) -> None:
    folder = stand_in("sbatch", BUSY_ONCE.format(before=before))
    said = project.launch("pretrain", "--noise", "0.2", PATH=f"{folder}:{cluster.environment['PATH']}")
    run = run_of(said)
    waiting(lambda: (run / "DONE.json").exists(), "the end of the run")
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue")
    assert len(list(run.glob("launch/attempts/*/open.json"))) == 1
    events = [json.loads(line)["event"] for line in (run / "launch" / "jobs.jsonl").read_text().splitlines()]
    assert events == ["submitting", "retrying", "submitted"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--partition", "urgnet"), "did you mean urgent?"),
        (("--nodes", "9"), "--nodes 9: partition main has at most 8"),
        (("--account", "nobody", "--constraint", "h100"), "sbatch refused"),
        (("--gpus-per-node", "8"), "sbatch refused"),
    ],
)
def test_what_the_cluster_cannot_give_is_one_line(project, cluster, words, error) -> None:
    said = project.launch("pretrain", *words, status=2)
    assert error in said
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said
    assert not cluster.call("squeue", "--noheader").strip()


def test_pending_and_requeued_jobs_run_the_snapshot(edited_project, cluster, waiting) -> None:
    said = edited_project.launch("pretrain", "--nodes", "2", "--recipe.hold", "6")
    held = run_of(said)
    job = job_of(said)
    waiting(lambda: (held / "metrics.jsonl").exists(), "the first step")
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    said = edited_project.launch("pretrain", "--seed", "1")
    pending = run_of(said)

    for room in ("pretrain", "slurm", "nml"):
        folder = edited_project.code / room
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "__init__.py").write_text("raise ImportError('edited after submission')")
    cluster.call("scontrol", "requeue", job)
    (held / "go").touch()
    cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    cluster.let_come_back(job, 1)
    for run in (held, pending):
        waiting(lambda run=run: (run / "DONE.json").exists(), f"the end of {run.name}")


def test_a_job_with_one_changed_byte_in_its_snapshot_fails_and_names_the_file(
    project, cluster, waiting
) -> None:
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    said = project.launch("pretrain")
    [file] = run_of(said).glob("launch/snapshots/*/pretrain/run.py")
    content = bytearray(file.read_bytes())
    # In its docstring: Python itself would not mind.
    content[3] ^= 1
    file.write_bytes(content)
    cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    job = f"JobId={job_of(said)}"
    waiting(lambda: "JobState=FAILED" in cluster.call("scontrol", "show", "job", job_of(said)), job)
    assert "ExitCode=1:0" in cluster.call("scontrol", "show", "job", job_of(said))
    logs = [log.read_text() for log in run_of(said).glob("launch/*_log.out")]
    assert any("is not what was submitted: pretrain/run.py is changed" in log for log in logs)


def test_uncommitted_changes_are_part_of_the_snapshot(edited_project, cluster, waiting) -> None:
    """Also where the environment is not exported: the job's own is the one to run in."""
    code = edited_project.code / "pretrain" / "run.py"
    code.write_text(code.read_text().replace('VERSION = "v1"', 'VERSION = "changed"'))
    said = edited_project.launch("pretrain", "--recipe.steps", "1", SBATCH_EXPORT="NONE")
    run = run_of(said)
    waiting(lambda: (run / "DONE.json").exists(), "the end of the run")
    [log] = run.glob("launch/*_0_log.out")
    assert "changed from" in log.read_text()


def test_a_cancelled_step_comes_back_and_what_submitit_left_half_written_stops_no_requeue(
    project, cluster, waiting
) -> None:
    said = project.launch("pretrain", "--nodes", "2", "--recipe.hold", "6")
    run = run_of(said)
    job = job_of(said)
    waiting(lambda: (run / "metrics.jsonl").exists(), "the first step")
    # A process that is killed while it dumps leaves this, and submitit asserts that it is not there.
    for name in ("submitted", "0_result", "1_result"):
        (run / "launch" / f"{job}_{name}.pkl.save_tmp").touch()
    # Of a step alone, that is a stop.
    cluster.call("scancel", f"{job}.0")
    (run / "go").touch()
    cluster.let_come_back(job, 1)
    waiting((run / "DONE.json").exists, "the end of the run")


def test_a_job_may_submit_another(project, cluster, waiting) -> None:
    # Around it are Slurm's variables, those of a rank, and those by which jobs run their own snapshot.
    around = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    around |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(project.work), "SLURM_HINT": "nomultithread"}
    launcher = [sys.executable, str(project.code / "slurm" / "launch.py")]
    done = subprocess.run(
        ["srun", "--ntasks=1", *launcher, "pretrain", "--nodes", "2"],
        cwd=project.work,
        env=os.environ | around,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = run_of(done.stdout)
    waiting((run / "DONE.json").exists, "the end of the run")
    assert len(list(run.glob("launch/*_log.out"))) == 2


def test_a_cancelled_job_stays_cancelled(project, cluster, waiting) -> None:
    said = project.launch("pretrain", "--nodes", "2", "--recipe.hold", "2")
    run = run_of(said)
    waiting(lambda: (run / "metrics.jsonl").exists(), "the first step")
    project.launch("cancel", str(run))
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue")
    assert "CANCELLED" in project.launch("status", str(run))
    (run / "go").touch()
    said = project.launch("resume", str(run))
    assert "submitted job" in said
    waiting(lambda: (run / "DONE.json").exists(), "the end of the run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_job_that_slurm_took_and_nobody_heard_of_does_not_stay(
    project, cluster, waiting, stand_in: Callable[[str, str], Path], number: signal.Signals
) -> None:
    # Whoever ends the launcher now leaves a job that it does not know of.
    folder = stand_in("sbatch", UNHEARD)
    process = project.start("pretrain", PATH=f"{folder}:{cluster.environment['PATH']}")
    waiting((folder / "taken").exists, "the submission")
    process.send_signal(number)
    process.wait(timeout=WAIT_SECONDS)
    # Only now: an sbatch that ends before the launcher has noticed the signal refuses the job.
    (folder / "end").touch()
    process.communicate(timeout=WAIT_SECONDS)
    run = project.work / "runs" / "quickstart-n00-seed0"
    jobs = re.findall(r"^ *(\d+)", cluster.call("squeue", "--noheader", "--states=all"), re.MULTILINE)
    # The newest; squeue lists by priority, and other tests leave jobs behind.
    orphan = max(jobs, key=int)
    said = project.launch("pretrain")
    waiting((run / "DONE.json").exists, "the end of the run")
    assert orphan != job_of(said)
    assert "JobState=CANCELLED" in cluster.call("scontrol", "show", "job", orphan)
    events = [json.loads(line)["event"] for line in (run / "launch" / "jobs.jsonl").read_text().splitlines()]
    assert events[-2:] == ["submitting", "submitted"]
    assert events[:-2] == (["submitting"] if number == signal.SIGKILL else ["submitting", "interrupted"])


def test_an_interrupted_submission_leaves_nothing_in_the_queue(
    project, cluster, waiting, stand_in: Callable[[str, str], Path]
) -> None:
    # Ctrl-C finds the first stage submitted.
    folder = stand_in("sbatch", HANGS_LATER)
    process = project.start("sweep", "--noise", "0", "0.2", PATH=f"{folder}:{cluster.environment['PATH']}")
    waiting((folder / "hangs").exists, "the second submission")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_SECONDS)
    (folder / "mark").unlink()
    assert process.returncode == 130
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue")
