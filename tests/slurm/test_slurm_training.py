"""The real rooms on the real Slurm: the same run on nodes and on this machine, disturbed and not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_daemons import SlurmCluster

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--noise", "0.2", "--nodes", "2", "--engine", "fsdp", "--epochs", "1"),
    *("--recipe.model.name", "resnet10t", "--recipe.data.workers", "1"),
)
STEPS = 19


def launch(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "slurm" / "launch.py"), *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> list[float]:
    """Return the loss of every step, as it was last computed."""
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return list({line["step"]: line["loss"] for line in lines if line["event"] == "step"}.values())


def weights(run: Path) -> str:
    return hashlib.sha256((run / "export" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slurm
def test_a_stopped_run_on_nodes_equals_an_undisturbed_one_on_this_machine(
    cluster: SlurmCluster, waiting, tmp_path: Path
) -> None:
    said = launch(tmp_path, "pretrain", *SMALL, "--run-dir", "nodes")
    job = re.findall(r"submitted job (\d+)", said)[0]
    run = tmp_path / "nodes"

    def shown() -> str:
        return cluster.call("scontrol", "show", "job", job, "--oneliner")

    waiting(lambda: len(losses(run)) >= 3 or "FAILED" in shown(), "step 3", 200)
    cluster.call("scancel", "--signal=USR2", job)
    waiting(lambda: "Restarts=1" in shown() and "COMPLETING" not in shown(), "the requeue", 200)
    assert 3 <= len(losses(run)) < STEPS
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    waiting(lambda: (run / "DONE.json").exists() or "FAILED" in shown(), "the end of the run", 200)

    launch(tmp_path, "pretrain", *SMALL, "--run-dir", "here", "--cluster", "local")
    assert len(losses(run)) == STEPS
    assert losses(run) == losses(tmp_path / "here")
    assert weights(run) == weights(tmp_path / "here")
