"""The cluster that developers and these tests start comes up whole and goes whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm_cluster.slurm_daemons import missing, skip
from tests.slurm_cluster.slurm_processes import processes_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_for_developers_stops_whole(waiting, number: signal.Signals) -> None:
    reason = missing(accounting=False)
    if reason:
        skip(reason)
    command = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm_cluster", "--nodes", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    line = command.stdout.readline().strip()
    conf = Path(line.removeprefix("export SLURM_CONF="))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    shown = subprocess.run(
        ["srun", "--nodes=2", "hostname"], env=environment, capture_output=True, text=True, check=True
    )
    assert len(shown.stdout.split()) == 2
    assert {process.name() for process in processes_of(conf)} >= {"munged", "slurmctld", "slurmd"}
    command.send_signal(number)
    command.wait(60)
    waiting(lambda: not list(processes_of(conf)), "the end of every daemon")
    # Killed, it leaves files in its folder for the system to clear; stopped, nothing.
    assert conf.exists() is (number == signal.SIGKILL)
    shutil.rmtree(conf.parents[1], ignore_errors=True)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slurm_cluster.slurm_daemons._PATH", "/nonexistent")
    assert "slurmctld, slurmd, sbatch, srun, munged not installed (Debian: " in missing(accounting=False)
    assert "mariadbd" in missing(accounting=True)


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if missing(accounting=False):
        skip(missing(accounting=False))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "need root" in missing(accounting=True)
