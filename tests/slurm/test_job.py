"""One rank, watched: what becomes of the signals that Slurm sends to every process of a step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WATCHER = """
import sys
from pathlib import Path
from slurm import job
job.REPEAT_SECONDS = 0.2
watched = job._Watched(Path("records"), 0, 1, saves=sys.argv[1] == "saves")
sys.exit(watched.run([sys.executable, "-c", sys.argv[2]], {}, "."))
"""
# Busy with imports when the signal comes: the handler is installed only later.
SLOW_TO_START = """
import os, signal, sys, time
from pathlib import Path
Path("half").write_text(str(os.getpid()))
os.replace("half", "pid")
while not Path("imported").exists(): time.sleep(0.01)
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
while True: time.sleep(0.01)
"""


def watch(folder: Path, saves: str, command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WATCHER, saves, command], cwd=folder)


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "records" / "rank-00000.json").read_text())


def signal_the_step(watcher: subprocess.Popen[bytes], folder: Path, waiting) -> None:
    """Send SIGUSR2 to the watching process and to its command, as Slurm does."""
    waiting((folder / "pid").exists, "the command")
    for process in (watcher.pid, int((folder / "pid").read_text())):
        subprocess.run(["kill", "-USR2", str(process)], check=True)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    return tmp_path


def test_a_command_that_was_still_starting_is_told_to_stop_again(records: Path, waiting) -> None:
    watcher = watch(records, "saves", SLOW_TO_START)
    signal_the_step(watcher, records, waiting)
    (records / "imported").touch()
    # A stop is no failure.
    assert watcher.wait(60) == 0
    assert (record(records)["status"], record(records)["stop_signal"]) == (75, signal.SIGUSR2)


def test_a_command_that_does_not_save_is_ended_by_the_signal(records: Path, waiting) -> None:
    watcher = watch(records, "starts over", SLOW_TO_START)
    signal_the_step(watcher, records, waiting)
    assert watcher.wait(60) == 0
    assert (record(records)["status"], record(records)["stop_signal"]) == (-signal.SIGUSR2, signal.SIGUSR2)


def test_a_failure_keeps_its_status(records: Path) -> None:
    watcher = watch(records, "saves", "import sys; sys.exit(7)")
    assert watcher.wait(60) == 7
    assert (record(records)["status"], record(records)["stop_signal"]) == (7, None)
