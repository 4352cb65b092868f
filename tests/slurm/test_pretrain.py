from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.served import PASSWORD, USER, served
from tests.slurm_cluster.slurm_daemons import SlurmCluster

pytestmark = pytest.mark.slurm
HOLD = ("--recipe.steps", "12", "--recipe.hold", "6")


def job_id(said: str) -> str:
    found = re.search(r"submitted job (\d+)", said)
    assert found, said
    return found[1]


def log(run: Path, job: str, rank: int = 0) -> str:
    return (run / "launch" / f"{job}_{rank}_log.out").read_text()


class Run:
    """A run that was submitted, and how a test follows it."""

    def __init__(self, cluster: SlurmCluster, wait: Callable[..., None], run: Path, job: str) -> None:
        self.cluster, self.wait, self.path, self.job = cluster, wait, run, job

    def state(self) -> str:
        return self.cluster.field(self.job, "JobState")

    def wait_for_hold(self) -> None:
        metrics = self.path / "metrics.jsonl"

        def held() -> bool:
            assert self.state() in ("PENDING", "RUNNING"), log(self.path, self.job)
            return metrics.exists() and len(metrics.read_text().splitlines()) >= 6

        self.wait(held, "step 6")

    def come_back(self) -> None:
        self.cluster.let_come_back(self.job, 1, 120)

    def finish(self) -> str:
        (self.path / "go").touch()
        self.wait(lambda: self.state() not in ("PENDING", "RUNNING", "COMPLETING"), "the end of the job")
        assert self.state() == "COMPLETED", log(self.path, self.job)
        assert (self.path / "DONE.json").exists()
        return (self.path / "export" / "model.safetensors").read_text()


@pytest.fixture
def submitted(cluster, project, waiting) -> Callable[..., Run]:
    def submit(*words: str) -> Run:
        said = project.launch("pretrain", "--noise", "0.2", *words)
        run = Path(said.strip().rsplit("run: ", 1)[1])
        return Run(cluster, waiting, run, job_id(said))

    return submit


def undisturbed(world: int, steps: int = 12, noise: str = "0.2") -> str:
    """Return the weights that the toy ends with when nothing disturbs it."""
    weights = "seed"
    for step in range(steps):
        total = sum((step + 1) * (rank + 1) for rank in range(world))
        weights = hashlib.sha256(f"{weights} {step} {total} {noise}".encode()).hexdigest()
    return weights


def test_eight_nodes_train_as_eight_local_processes_do(submitted, project) -> None:
    run = submitted("--nodes", "8")
    assert run.finish() == undisturbed(8)
    project.launch("pretrain", "--noise", "0.2", "--nodes", "8", "--cluster", "local", "--run-dir", "local")
    assert (project.work / "local" / "export" / "model.safetensors").read_text() == undisturbed(8)
    assert not list(run.path.glob("launch/*_8_log.out"))
    assert len(list(run.path.glob("launch/*_log.out"))) == 8


def test_a_dry_run_shows_what_submitit_hands_to_sbatch(submitted, project, cluster) -> None:
    words = ("--nodes", "2", "--time", "1-00:00:00", "--cpus-per-task", "2", "--recipe.hold", "2")
    shown = project.launch("pretrain", "--noise", "0.2", *words, "--dry-run")
    assert not list(project.work.iterdir())
    run = submitted(*words)
    [script] = run.path.glob("launch/*_submission.sh")
    [file] = run.path.glob("launch/nml-*.json")
    snapshot = json.loads(file.read_text())["snapshot"]
    handed = script.read_text().replace(shlex.quote(snapshot), "SNAPSHOT").replace(file.stem, "TOKEN")
    assert handed in shown
    assert "#SBATCH --nodes=2\n" in handed
    assert "#SBATCH --time=1440\n" in handed
    assert "#SBATCH --cpus-per-task=2\n" in handed


def test_a_run_survives_the_death_of_the_node_of_its_batch_script(submitted, cluster) -> None:
    run = submitted("--nodes", "4", *HOLD)
    run.wait_for_hold()
    # Slurm would have the others wait for the time limit.
    cluster.kill_node("n0")
    run.come_back()
    assert run.finish() == undisturbed(4)
    # The first attempt had nobody left to close it.
    [closed] = run.path.glob("launch/attempts/*/close.json")
    assert (closed.parent.name, json.loads(closed.read_text())["outcome"]) == (f"{run.job}-001", "done")


def test_a_password_in_a_url_is_in_the_environment_of_ranks_and_in_no_file(
    submitted, project, tmp_path: Path
) -> None:
    (tmp_path / "served" / "set").mkdir(parents=True)
    record = {"format": "nml-shards/1", "levels": {"n20": {}}}
    (tmp_path / "served" / "set" / "set.json").write_text(json.dumps(record))
    with served(tmp_path / "served") as server:
        run = submitted("--shards", f"http://{USER}:{PASSWORD}@{server.place}/set", "--recipe.steps", "4")
    run.finish()
    shown = f"http://{server.place}/set"
    assert json.loads((run.path / "DONE.json").read_text())["with_secret"] == [shown]
    [script] = run.path.glob("launch/nml-*.json")
    assert shown in script.read_text()
    for file in project.work.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


def test_shards_are_written_as_a_job_from_the_folder_of_the_user(project, cluster, waiting) -> None:
    said = project.launch("shards", "--", "--source", "digits", "--noise", "0", "0.2", "--out", "my set")
    waiting(lambda: (project.work / "my set" / "set.json").exists(), said)
    waiting(lambda: re.search(r"shards .* COMPLETED", project.launch("status")), "its state")


@pytest.mark.parametrize("where", ["slurm", "local"])
def test_shards_are_planned_by_one_packed_by_several_and_finished_by_one(
    project, cluster, waiting, where: str
) -> None:
    words = ("--", "--source", "digits", "--noise", "0", "0.2", "--out", "my set", "--workers", "1")
    said = project.launch("shards", "--nodes", "3", "--cluster", where, *words)
    waiting(lambda: (project.work / "my set" / "set.json").exists(), said)
    parts = {path.name for path in (project.work / "my set").iterdir()} - {"set.json"}
    assert parts == {"1 of 3", "2 of 3", "3 of 3"}
    if where == "slurm":
        waiting(lambda: len(re.findall(r"shards .* COMPLETED", project.launch("status"))) == 5, "its states")
