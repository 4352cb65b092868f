"""The real rooms on the real Slurm: the same run on nodes and on this machine, disturbed and not.

What stops or kills a job is Slurm's own: the requeue of an administrator, the time limit, preemption,
and a node that dies with all its processes. It comes while the ranks and their loader workers are in
the middle of a step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nml.layout import newest_step
from tests.slurm_cluster.slurm_daemons import SlurmCluster

# Many ranks on few cores take their time.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "objective": "classify",
    "epochs": 4,
    "validate_every": 4,
    "global_batch": 64,
    "model": {"name": "resnet18", "kwargs": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}},
    "data": {
        **{"size": 32, "test_size": 32, "crop_pct": 1.0, "crop": "pad", "flip": 0.5},
        **{"workers": 1, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "streams": 8},
    },
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"warmup_epochs": 0.5},
    "checkpoints": {"every_epochs": 0, "every_steps": 6},
}
STEPS = 4 * 19
# Each start of a rank costs seconds: one engine is disturbed in every way, the other runs on every node.
ENGINES = ("fsdp",)
# Where the run is disturbed, no two in the same epoch.
REQUEUED, BEREFT, WARNED, PREEMPTED = 8, 22, 40, 58
# Slurm looks at time limits twice a minute: told this early, the job has that long to save.
SIGNAL_DELAY = 118
WAIT_SECONDS = 400


class Launcher:
    """``python slurm/launch.py pretrain`` on a cluster, in a folder.

    Args:
        cluster: The cluster.
        folder: Where it is called.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.started: list[subprocess.Popen[str]] = []
        (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        (folder / "cluster.yaml").write_text(f"signal_delay_s: {SIGNAL_DELAY}\nsilence_s: 600\n")
        # What a test holds is to be held, and what it stops to be noticed.
        (folder / "impatient.yaml").write_text("silence_s: 10\n")

    def start(self, run: str, *words: str) -> subprocess.Popen[str]:
        words = ("pretrain", "--noise", "0.2", "--recipe", "tiny.yaml", "--run-dir", run, *words)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "slurm" / "launch.py"), *words],
            cwd=self.folder,
            env=os.environ | self.cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, output
        return output

    def status(self, run: Path) -> str:
        """Return what ``status`` prints of a run."""
        return subprocess.run(
            [sys.executable, str(ROOT / "slurm" / "launch.py"), "status", str(run)],
            env=os.environ | self.cluster.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def end_all(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def launcher(shared_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(shared_cluster, tmp_path_factory.mktemp("training"))
    yield launcher
    launcher.end_all()
    shared_cluster.reset()


class Job:
    """A run on nodes, and how it is disturbed."""

    def __init__(
        self,
        launcher: Launcher,
        waiting: Callable[..., None],
        run: str,
        *words: str,
        cluster_file: str = "cluster.yaml",
    ) -> None:
        self.cluster, self.waiting, self.path = launcher.cluster, waiting, launcher.folder / run
        said = launcher.end(launcher.start(run, "--cluster-file", cluster_file, *words))
        found = re.search(r"submitted job (\d+)", said)
        assert found, said
        self.id = found[1]
        self.disturbances = 0
        self.held: psutil.Process | None = None

    def field(self, name: str) -> str:
        shown = self.cluster.call("scontrol", "show", "job", self.id, "--oneliner")
        found = re.search(rf"\b{name}=(\S+)", shown)
        assert found, shown
        return found[1]

    def log(self) -> str:
        log = self.path / "launch" / f"{self.id}_0_log.out"
        return log.read_text(errors="replace") if log.exists() else ""

    def rank(self, number: int) -> psutil.Process | None:
        """Return the process that trains, which is neither the one that watches it nor a loader worker."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                variables = process.environ()
                mine = variables.get("SLURM_JOB_ID") == self.id and variables.get("RANK") == str(number)
                if mine and variables.get("SLURM_CONF") == str(self.cluster.conf):
                    parent = process.parent()
                    if parent and "slurm.agent" in parent.cmdline():
                        return process
        return None

    def hold(self, step: int) -> bool:
        """Hold rank 1, and with it all, once ``step`` is done; return whether it is held."""
        assert "failed" not in self.closings("outcome"), self.log()
        if len(losses(self.path)) < step:
            return False
        self.held = self.rank(1)
        assert self.held is not None, self.log()
        self.held.suspend()
        assert len(losses(self.path)) < STEPS
        workers = [one for one in self.held.children() if "lifeline" not in " ".join(one.cmdline())]
        assert len(workers) == 1, "its loader worker, beside its warden"
        return True

    def release(self) -> None:
        if self.held is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.held.resume()
        self.held = None

    def come_back(self) -> None:
        """Wait for the requeue and end Slurm's two minutes of waiting after it, if they are not over."""
        self.disturbances += 1

        def requeued() -> bool:
            return self.field("Restarts") == str(self.disturbances) and self.field("JobState") != "COMPLETING"

        self.waiting(requeued, f"requeue {self.disturbances} of {self.path.name}", WAIT_SECONDS, pause=0.3)
        # Slurm counts in seconds whether a node's word about this job is from before the requeue. A job that
        # lost a node may start elsewhere in the moment in which the node is given up: it needs no help.
        self.update("StartTime=now+2", check=False)

    def update(self, setting: str, *, check: bool = True) -> None:
        self.cluster.call("scontrol", "update", f"JobId={self.id}", setting, check=check)

    def finish(self) -> None:
        self.waiting(
            lambda: self.field("JobState") in ("COMPLETED", "FAILED"),
            f"the end of {self.path.name}",
            WAIT_SECONDS,
            pause=0.3,
        )
        assert (self.path / "DONE.json").exists(), self.log()

    def pause(self, since: float) -> float:
        """Wait for the first step after all have started again, and return how long that took."""
        resumed = self.log().count("resuming at step")
        self.waiting(lambda: self.log().count("resuming at step") > resumed, "the restart", WAIT_SECONDS)
        done = len(steps(self.path))
        self.waiting(lambda: len(steps(self.path)) > done, "the next step", WAIT_SECONDS)
        return time.time() - since

    def openings(self) -> list[int]:
        """Return the step that each attempt found saved."""
        files = sorted(self.path.glob("launch/attempts/*/open.json"))
        return [json.loads(file.read_text())["step"] for file in files]

    def closings(self, what: str) -> list[str]:
        """Return how each attempt was closed, nothing where it was ended before it could say so."""
        attempts = sorted(self.path.glob("launch/attempts/*"))
        files = [attempt / "close.json" for attempt in attempts]
        return [json.loads(file.read_text())[what] if file.exists() else "" for file in files]


def losses(run: Path) -> list[float]:
    """Return the loss of every step, as it was last computed."""
    return list({line["step"]: line["loss"] for line in steps(run)}.values())


def steps(run: Path) -> list[dict[str, Any]]:
    """Return what is told of each step, also of those that were done again."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().rpartition("\n")[0].splitlines() if metrics.exists() else []
    return [line for line in map(json.loads, lines) if line["event"] == "step"]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "export" / "model.safetensors").read_bytes()).hexdigest()


def was_told(process: psutil.Process, number: int) -> bool:
    """Whether a signal waits for a process that is held, or the process goes on.

    Slurm sends SIGCONT along with its warning.
    """
    if process.status() != psutil.STATUS_STOPPED:
        return True
    masks = re.findall(r"(?:Shd|Sig)Pnd:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@contextlib.contextmanager
def in_mid_step(jobs: Sequence[Job], step: int) -> Iterator[None]:
    """Hold jobs soon after ``step``, all of them at once; they go on when the block ends."""
    free = list(jobs)

    def all_held() -> bool:
        free[:] = [job for job in free if not job.hold(step)]
        return not free

    try:
        jobs[0].waiting(all_held, f"step {step}", WAIT_SECONDS)
        yield
    finally:
        for job in jobs:
            job.release()


def requeue(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cluster.call("scontrol", "requeue", job.id)


def lose_nodes(jobs: Sequence[Job]) -> None:
    """Kill the nodes of rank 1, of which jobs may share one."""
    for node in {job.held.environ()["SLURMD_NODENAME"] for job in jobs if job.held}:
        jobs[0].cluster.kill_node(node)


def reach_the_time_limit(job: Job) -> None:
    minutes = int(job.field("RunTime").split(":")[-2])
    job.update(f"TimeLimit={minutes + 2}")


def be_preempted(job: Job) -> None:
    # It needs every node that is left.
    nodes = [node for node in job.cluster.nodes if node in job.cluster.daemons]
    words = (
        "--partition=urgent",
        f"--nodes={len(nodes)}",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=true",
    )
    job.cluster.call("sbatch", *words)


def stop(job: Job, step: int, tell: Callable[[Job], None], waiting: Callable[..., None]) -> None:
    """Have Slurm tell a job in the middle of a step that it is to stop."""
    with in_mid_step([job], step):
        held = job.held
        assert held is not None
        waiting(lambda: held.status() == psutil.STATUS_STOPPED, "the hold")
        tell(job)
        # Every process of the step gets the signal; the rank acts on it once it goes on.
        waiting(lambda: was_told(held, signal.SIGUSR2), "the signal", WAIT_SECONDS)
    job.come_back()


@pytest.fixture(scope="module")
def disturbed(launcher: Launcher, waiting: Callable[..., None]) -> dict[str, tuple[Job, Path]]:
    """A run of two ranks an engine, and the same run undisturbed.

    All are requeued and lose a node; one reaches its time limit and is preempted besides.
    """
    words = {engine: ("--nodes", "2", "--engine", engine) for engine in ENGINES}
    jobs = {engine: Job(launcher, waiting, f"nodes-{engine}", *words[engine]) for engine in ENGINES}
    every = list(jobs.values())
    with in_mid_step(every, REQUEUED):
        requeue(every)
    for job in every:
        job.come_back()
    with in_mid_step(every, BEREFT):
        lose_nodes(every)
    # It takes Slurm a while to believe that a node is dead.
    here = [launcher.start(f"here-{engine}", *words[engine], "--cluster", "local") for engine in ENGINES]
    for job in every:
        job.come_back()
    # The dead node stays away: the controller would tell it to end what it had of the job, as long as it had
    # not been heard, and with that the attempt that runs there by then.
    stop(jobs["fsdp"], WARNED, reach_the_time_limit, waiting)
    # Slurm refuses another limit to a job that it has preempted, so this is not left to every return.
    jobs["fsdp"].update("TimeLimit=60")
    # What is still running would be preempted too.
    for engine in set(ENGINES) - {"fsdp"}:
        jobs[engine].finish()
    stop(jobs["fsdp"], PREEMPTED, be_preempted, waiting)
    jobs["fsdp"].finish()
    for process in here:
        launcher.end(process)
    return {engine: (jobs[engine], launcher.folder / f"here-{engine}") for engine in ENGINES}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_disturbed_run_ends_with_the_weights_of_an_undisturbed_one(
    disturbed: Mapping[str, tuple[Job, Path]], engine: str
) -> None:
    job, here = disturbed[engine]
    assert len(losses(job.path)) == STEPS
    assert losses(job.path) == losses(here)
    assert weights(job.path) == weights(here)


def test_every_disturbance_is_told_from_the_others(disturbed: Mapping[str, tuple[Job, Path]]) -> None:
    for engine, (job, _) in disturbed.items():
        requeued, bereft, *rest = job.closings("reason")
        # Slurm ends the batch script of a job that it requeues, sooner or later.
        assert not requeued or requeued == "stopped by SIGTERM"
        assert not bereft or bereft.startswith("lost node")
        assert rest == ["stopped by SIGUSR2"] * (2 if engine == "fsdp" else 0) + ["complete"]


def test_what_was_told_to_stop_goes_on_where_it_stopped(disturbed: Mapping[str, tuple[Job, Path]]) -> None:
    job, _ = disturbed["fsdp"]
    fresh, requeued, bereft, *told = job.openings()
    assert fresh == 0
    # From the newest complete checkpoint.
    assert requeued <= bereft <= told[0]
    assert bereft > 0
    assert told[0] >= WARNED
    assert told[1] >= PREEMPTED
    assert told == [int(step) for step in re.findall(r"stopped at step (\d+) of", job.log())[-2:]]


@pytest.fixture
def idle_cluster(launcher: Launcher) -> None:
    """All eight nodes, whatever became of the tests before."""
    launcher.cluster.reset()


ON_FOUR = ("--nodes", "4", "--epochs", "2", "--recipe.global_batch", "128", "--recipe.data.workers", "0")
KILLED, LAST = 7, 18
STALLED = re.compile(r"rank 3 on n3.*: no sign of life for \d+s")


@pytest.mark.usefixtures("idle_cluster")
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_ranks_killed_or_frozen_on_four_nodes_cost_no_requeue_and_no_bit(
    launcher: Launcher, waiting: Callable[..., None], engine: str
) -> None:
    words = (*ON_FOUR, "--engine", engine)
    job = Job(launcher, waiting, f"four-{engine}", *words, cluster_file="impatient.yaml")
    waiting(lambda: newest_step(job.path) and len(losses(job.path)) >= KILLED, "a checkpoint", WAIT_SECONDS)
    rank = job.rank(2)
    assert rank is not None, job.log()
    rank.kill()
    print(f"{engine}: the next step came {job.pause(time.time()):.1f} s after the kill")
    reasons = [r"rank 2 was killed on n2 \(SIGKILL\)"]
    if engine == "fsdp":
        # While the ranks write what they saved.
        waiting((job.path / "checkpoints" / "step-00000012").exists, "a save", WAIT_SECONDS, pause=0.002)
        rank = job.rank(3)
        assert rank is not None, job.log()
        rank.suspend()
        stopped = time.time()
        waiting(lambda: STALLED.search(launcher.status(job.path)), "its name", WAIT_SECONDS, pause=0.5)
        print(f"{engine}: the next step came {job.pause(stopped):.1f} s after the stop")
        reasons.append(r"rank 3 was frozen on n3: no sign of life for \d+ s \(.*\)")
    job.finish()
    assert job.field("Restarts") == "0"
    assert job.closings("reason") == ["complete"]
    [again] = job.path.glob("launch/attempts/*/restarts.jsonl")
    told = [json.loads(line)["reason"] for line in again.read_text().splitlines()]
    assert all(re.fullmatch(*pair) for pair in zip(reasons, told, strict=True)), told
    here = launcher.folder / f"four-here-{engine}"
    launcher.end(launcher.start(here.name, *words, "--cluster", "local"))
    assert len(losses(job.path)) == LAST
    assert losses(job.path) == losses(here)
    assert weights(job.path) == weights(here)
