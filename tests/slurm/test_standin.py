from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slurm.standin import rank_environment, run_ranks

WAIT_SECONDS = 30

# Stands in for the launcher: runs the ranks given as Python text, and exits with their status.
LAUNCHER = """
import sys
from pathlib import Path
from slurm.standin import run_ranks
sys.exit(run_ranks([sys.executable, "-c", sys.argv[1]], nodes=int(sys.argv[2]), tasks=1, logs=Path("logs")))
"""
MARK_AND_SLEEP = """
import os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path(f"rank-{os.environ['RANK']}.pid").write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""

SAVE_ON_TERM = """
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]
def save(*_): time.sleep(0.3); pathlib.Path(f"saved-{rank}").touch(); sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(f"rank-{rank}.pid").write_text(f"{os.getpid()} 0")
time.sleep(600)
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_pids(folder: Path, world: int) -> list[int]:
    files = [folder / f"rank-{rank}.pid" for rank in range(world)]
    wait_for(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files))
    return [int(word) for file in files for word in file.read_text().split()]


def test_every_rank_gets_the_environment_of_its_place(tmp_path: Path) -> None:
    text = (
        "import os, pathlib\n"
        "names = ['RANK', 'LOCAL_RANK', 'NODE_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE']\n"
        f"file = pathlib.Path({str(tmp_path)!r}, os.environ['RANK'])\n"
        "file.write_text(' '.join(os.environ[name] for name in names))"
    )
    assert run_ranks(python(text), nodes=2, tasks=2, logs=tmp_path / "logs") == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(4)] == [
        "0 0 0 4 2",
        "1 1 0 4 2",
        "2 0 1 4 2",
        "3 1 1 4 2",
    ]


def test_all_ranks_meet_at_one_address_on_the_loopback_interface() -> None:
    environments = [rank_environment(rank, nodes=3, tasks=1, port=1234) for rank in range(3)]
    assert {(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in environments} == {("127.0.0.1", "1234")}


def test_one_failing_rank_ends_the_rest_and_shows_its_last_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import os, sys, time\nif os.environ['RANK'] == '2': print('the cause'); sys.exit(7)\ntime.sleep(600)"
    )
    before = psutil.Process().children(recursive=True)
    assert run_ranks(python(text), nodes=3, tasks=1, logs=tmp_path / "logs") == 7
    said = capfd.readouterr().err
    assert "rank 2 of the run ended with exit status 7" in said
    assert "the cause" in said
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_the_rank_that_caused_the_failure_is_named_before_its_echoes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ready = tmp_path / "ready"
    text = (
        f"import os, pathlib, sys, time; ready = pathlib.Path({str(ready)!r})\n"
        "if os.environ['RANK'] == '2': print('the cause', flush=True); ready.touch(); sys.exit(1)\n"
        "while not ready.exists(): time.sleep(0.001)\n"
        "print('RuntimeError: [gloo] Connection closed by peer', flush=True); sys.exit(1)"
    )
    assert run_ranks(python(text), nodes=4, tasks=1, logs=tmp_path / "logs") == 1
    assert "rank 2 of the run" in capfd.readouterr().err


def test_a_users_mistake_that_every_rank_finds_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "import sys; print('error: --x 1: no', file=sys.stderr); sys.exit(2)"
    assert run_ranks(python(text), nodes=3, tasks=1, logs=tmp_path / "logs") == 2
    assert capfd.readouterr().err == "error: --x 1: no\n"


def test_ranks_that_were_told_to_stop_are_no_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "import os, sys; sys.exit(75)"
    assert run_ranks(python(text), nodes=2, tasks=1, logs=tmp_path / "logs") == 75
    assert capfd.readouterr().err == ""


def test_a_rank_killed_by_a_signal_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_ranks(python(text), nodes=1, tasks=1, logs=tmp_path / "logs") == 128 + signal.SIGKILL
    assert "signal SIGKILL" in capfd.readouterr().err


def launch(folder: Path, text: str, world: int, **more: bool) -> subprocess.Popen[bytes]:
    words = [*python(LAUNCHER), text, str(world)]
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL, **more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_every_rank_and_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    launcher = launch(tmp_path, MARK_AND_SLEEP, 3)
    pids = started_pids(tmp_path, 3)
    launcher.send_signal(number)
    launcher.wait(WAIT_SECONDS)
    assert launcher.returncode != 0
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_ctrl_c_in_a_terminal_ends_every_rank_and_what_it_started(tmp_path: Path) -> None:
    # A terminal signals the whole foreground group, not the launcher alone.
    launcher = launch(tmp_path, MARK_AND_SLEEP, 3, start_new_session=True)
    pids = started_pids(tmp_path, 3)
    family = psutil.Process(launcher.pid).children(recursive=True)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.wait(WAIT_SECONDS)
    assert launcher.returncode != 0
    assert {process.pid for process in family} >= set(pids)
    wait_for(lambda: not any(alive(process.pid) for process in family))


def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    launcher = launch(tmp_path, MARK_AND_SLEEP, 2)
    pids = started_pids(tmp_path, 2)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert {process.pid for process in family} >= set(pids)
    launcher.kill()
    launcher.wait(WAIT_SECONDS)
    wait_for(lambda: not any(alive(process.pid) for process in family))


def test_ranks_of_a_killed_launcher_may_save_before_they_end(tmp_path: Path) -> None:
    launcher = launch(tmp_path, SAVE_ON_TERM, 2)
    pids = started_pids(tmp_path, 2)[::2]
    launcher.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_a_rank_may_save_before_it_ends(tmp_path: Path) -> None:
    launcher = launch(tmp_path, SAVE_ON_TERM, 2)
    started_pids(tmp_path, 2)
    launcher.send_signal(signal.SIGINT)
    launcher.wait(WAIT_SECONDS)
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()
