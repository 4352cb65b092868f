"""Real runs on the real Slurm: a small recipe, a run that is submitted, and the same one undisturbed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import yaml

from nml.layout import newest_step
from shards.write import main as write_shards
from slurm.entry import main
from tests.pretrain.ranks import Ranks, Zygote
from tests.slurm_cluster.slurm_daemons import SlurmCluster

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
# Slurm looks at time limits twice a minute: told this early, the job has that long to save.
SIGNAL_DELAY = 118
WAIT_SECONDS = 400


class Launcher:
    """``python slurm/launch.py`` on a cluster, in a folder with a set, and the same runs without it.

    Args:
        cluster: The cluster.
        folder: Where it is called.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        # Ranks on this machine need not import each for themselves.
        self._zygote = Zygote(double=False)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        (folder / "cluster.yaml").write_text(f"signal_delay_s: {SIGNAL_DELAY}\nsilence_s: 600\n")
        # What a test holds is to be held, and what it stops to be noticed.
        (folder / "impatient.yaml").write_text("silence_s: 10\n")
        (folder / "standby.yaml").write_text("silence_s: 600\nenv: {NML_STANDBY_SECONDS: '0'}\n")
        # Nothing to validate on: that would only cost each rank an import.
        write_shards(["--source", "digits", "--noise", "0.2", "--out", str(folder / "digits")])

    def _words(self, run: str, *words: str) -> list[str]:
        own = ["--noise", "0.2", "--shards", "digits", "--recipe", "tiny.yaml", "--run-dir", run]
        return [*own, *words]

    def submit(self, run: str, *words: str) -> str:
        """Submit a run and return the job."""
        said = self._call("pretrain", *self._words(run, *words))
        found = re.search(r"submitted job (\d+)", said)
        assert found, said
        return found[1]

    def train_here(self, run: str, ranks: int, *words: str) -> Ranks:
        """Train the same run with ranks that are forked here."""
        return self._zygote.fork(ranks, (self._words(run, *words),), self.folder)

    def status(self, run: Path) -> str:
        """Return what ``status`` prints of a run; here, as what is to be seen lasts for seconds."""
        with patch.dict(os.environ, self.cluster.environment), redirect_stdout(io.StringIO()) as said:
            assert main(["status", str(run)]) == 0
        return said.getvalue()

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "slurm" / "launch.py"), *words],
            cwd=self.folder,
            env=os.environ | self.cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def end(self) -> None:
        self._zygote.end()


class Job:
    """A run on nodes, and how it is disturbed."""

    def __init__(
        self,
        launcher: Launcher,
        waiting: Callable[..., None],
        run: str,
        *words: str,
    ) -> None:
        self.cluster, self.waiting, self.path = launcher.cluster, waiting, launcher.folder / run
        self.id = launcher.submit(run, *words)
        self.disturbances = 0
        self.held: psutil.Process | None = None

    def field(self, name: str) -> str:
        return self.cluster.field(self.id, name)

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
        assert not (self.path / "DONE.json").exists()
        workers = [one for one in self.held.children() if "lifeline" not in " ".join(one.cmdline())]
        assert len(workers) == 1, "its loader worker, beside its warden"
        return True

    def release(self) -> None:
        if self.held is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.held.resume()
        self.held = None

    def come_back(self) -> None:
        self.disturbances += 1
        self.cluster.let_come_back(self.id, self.disturbances, WAIT_SECONDS)

    def update(self, setting: str) -> None:
        self.cluster.call("scontrol", "update", f"JobId={self.id}", setting)

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


# A run on four nodes: when a rank of it is killed, and how many steps it has.
ON_FOUR = ("--epochs", "2", "--recipe.global_batch", "128", "--recipe.data.workers", "0")
KILLED, STEPS_ON_FOUR = 7, 18


def killed_on_four_nodes(
    launcher: Launcher, waiting: Callable[..., None], engine: str, cluster_file: str
) -> Job:
    """Return a run on four nodes that makes steps again after one of its ranks was killed."""
    words = ("--nodes", "4", *ON_FOUR, "--engine", engine, "--cluster-file", cluster_file)
    job = Job(launcher, waiting, engine, *words)
    waiting(lambda: newest_step(job.path) and len(losses(job.path)) >= KILLED, "a checkpoint", WAIT_SECONDS)
    rank = job.rank(2)
    assert rank is not None, job.log()
    rank.kill()
    print(f"{engine}: the next step came {job.pause(time.time()):.1f} s after the kill")
    return job


def ends_as_undisturbed(launcher: Launcher, job: Job, *more: str) -> None:
    """Hold that a run on four nodes was not requeued, and ends with the weights of an undisturbed one.

    Args:
        launcher: Where it was submitted.
        job: The run.
        more: Why its ranks started again after the kill, as patterns.
    """
    job.finish()
    assert job.field("Restarts") == "0"
    assert job.closings("reason") == ["complete"]
    [again] = job.path.glob("launch/attempts/*/restarts.jsonl")
    told = [json.loads(line)["reason"] for line in again.read_text().splitlines()]
    reasons = [r"rank 2 was killed on n2 \(SIGKILL\)", *more]
    assert all(re.fullmatch(*pair) for pair in zip(reasons, told, strict=True)), told
    here = launcher.folder / f"{job.path.name}-here"
    status, said = launcher.train_here(here.name, 4, *ON_FOUR, "--engine", job.path.name).end()
    assert status == 0, said
    assert len(losses(job.path)) == STEPS_ON_FOUR
    assert losses(job.path) == losses(here)
    assert weights(job.path) == weights(here)


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
