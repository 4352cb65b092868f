"""Nodes, programs and a controller that are not there when they are needed, on a real cluster."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slurm
WAIT_SECONDS = 120
# On this node no rank lives, as where the memory or the GPU is broken.
BAD_NODE = """
import os
if os.environ.get("SLURMD_NODENAME") == "n0" and "RANK" in os.environ:
    os.kill(os.getpid(), 9)
"""


class Run:
    """A run that was submitted."""

    def __init__(self, project, cluster, waiting: Callable[..., None], *words: str) -> None:
        said = project.launch("pretrain", *words)
        self.project, self.cluster, self.waiting = project, cluster, waiting
        self.path = Path(said.strip().rsplit("run: ", 1)[1])
        self.job = re.findall(r"submitted job (\d+)", said)[0]

    def field(self, name: str) -> str:
        return self.cluster.field(self.job, name)

    def wait_for_hold(self, step: int) -> None:
        metrics = self.path / "metrics.jsonl"
        self.waiting(
            lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= step, f"step {step}"
        )

    def come_back(self) -> None:
        self.cluster.let_come_back(self.job, 1, WAIT_SECONDS)

    def closings(self) -> list[tuple[str, str]]:
        files = sorted(self.path.glob("launch/attempts/*/close.json"))
        records = [json.loads(file.read_text()) for file in files]
        return [(record["outcome"], record["reason"]) for record in records]

    def why(self) -> str:
        """Return the last column of the run's row."""
        return self.project.launch("status", str(self.path)).splitlines()[1]


def test_a_node_that_kills_whatever_runs_on_it_is_left_out_after_the_second_time(
    project, cluster, waiting, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BAD_NODE)
    (project.work / "cluster.yaml").write_text(f"env: {{PYTHONPATH: '{tmp_path}/site'}}\n")
    run = Run(project, cluster, waiting, "--nodes", "2", "--cluster-file", "cluster.yaml")
    run.come_back()
    assert run.field("ExcNodeList") == "n0"
    waiting((run.path / "DONE.json").exists, "the end of the run", WAIT_SECONDS)
    waiting(lambda: len(run.closings()) == 2, "its record")
    [first, second] = run.closings()
    assert first == ("requeue", "rank 0 was killed on n0 (SIGKILL); no spare node")
    assert second == ("done", "complete")


def processes(job: str, *confs: Path) -> Iterator[psutil.Process]:
    """Yield the agents and ranks of a job; clusters of other workers have jobs of the same number."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, KeyError):
            found = process.environ()
            # Both are known by a variable that the batch step does not have.
            mine = found["SLURM_JOB_ID"] == job and Path(found["SLURM_CONF"]) in confs
            if mine and "SLURM_STEP_NODELIST" in found:
                yield process


def test_a_controller_that_is_away_at_a_requeue_ends_no_run(project, cluster, waiting) -> None:
    # Slurm's commands give up a controller that is gone sooner than they would.
    conf = project.work / "slurm.conf"
    conf.write_text(cluster.conf.read_text().replace("MessageTimeout=20", "MessageTimeout=5"))
    env = {"NML_REQUEUE_RETRY_SECONDS": "1", "SLURM_CONF": str(conf)}
    (project.work / "cluster.yaml").write_text(json.dumps({"env": env}))
    words = ("--nodes", "2", "--recipe.hold", "6", "--cluster-file", "cluster.yaml")
    run = Run(project, cluster, waiting, *words)
    run.wait_for_hold(6)
    log = run.path / "launch" / f"{run.job}_0_log.out"
    controller = cluster.daemons.pop("slurmctld")
    # It writes its state down before it goes.
    controller.send_signal(signal.SIGTERM)
    controller.wait(60)
    # A step has that of its node's daemon.
    for process in processes(run.job, conf, cluster.conf):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR2)
    waiting(lambda: "the requeue is asked for again" in log.read_text(), "the wait", WAIT_SECONDS)
    (run.path / "go").touch()
    cluster.start_controller()
    run.come_back()
    waiting((run.path / "DONE.json").exists, "the end of the run", WAIT_SECONDS)
    waiting(lambda: len(run.closings()) == 2, "its record")
    assert run.closings() == [("requeue", "stopped by SIGUSR2"), ("done", "complete")]


def test_what_is_gone_when_a_job_starts_fails_it_once_with_the_cause(
    project, cluster, waiting, tmp_path: Path
) -> None:
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    for name in ("lib", "pyvenv.cfg"):
        (tmp_path / "env" / name).symlink_to(Path(sys.prefix) / name)
    before, project.work = project.work, project.work / "folder"
    project.work.mkdir()
    launch = [str(python), str(project.code / "slurm" / "launch.py"), "pretrain"]
    subprocess.run([*launch, "--run-dir", str(before / "python")], cwd=project.work, check=True)
    folder = Run(project, cluster, waiting, "--run-dir", str(before / "run"))
    project.work = before
    shutil.rmtree(tmp_path / "env")
    shutil.rmtree(project.work / "folder")
    cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue")
    assert folder.field("Restarts") == "0"
    gone = f"cannot start: No such file or directory: {project.work}/folder"
    assert folder.why().endswith(gone)
    said = project.launch("status", "python").splitlines()[1]
    assert " FAILED " in said
    assert said.endswith("env/bin/python: No such file or directory")


def test_a_job_that_was_cancelled_for_another_is_named_to_be_submitted_again(
    project, cluster, waiting
) -> None:
    words = ("sweep", "--noise", "0.2", "--plugins", "lp", "--recipe.hold", "6", "--partition", "cheap")
    project.launch(*words)
    run = project.work / "runs" / "quickstart-n20-seed0"
    waiting(lambda: (run / "metrics.jsonl").exists(), "the first step")
    urgent = ("--partition=urgent", f"--nodes={len(cluster.nodes)}", "--exclusive", "--wrap=true")
    cluster.call("sbatch", *urgent, "--output=/dev/null")
    waiting(lambda: " PREEMPTED " in project.launch("status", "sweeps/sweep"), "the preemption", WAIT_SECONDS)
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue", WAIT_SECONDS)
    rows = {row.split()[0]: row for row in project.launch("status", "sweeps/sweep").splitlines()[1:]}
    assert "submit it again: python slurm/launch.py resume " in rows["pretrain"]
    assert rows["probes"].endswith("pretrain quickstart-n20-seed0 was preempted")
    (run / "go").touch()
    assert "pretrain: 1 to do" in project.launch("resume", "sweeps/sweep")
    waiting((project.work / "sweeps" / "sweep" / "report" / "report.html").exists, "the report", WAIT_SECONDS)
