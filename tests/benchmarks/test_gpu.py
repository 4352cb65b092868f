"""The measurement of a GPU, every part of it on a CPU: no line is to be new where a GPU's minutes count."""

from __future__ import annotations

import errno
import json
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import packages, running
from benchmarks.gpu.machine import Clocks, ask, describe, warnings
from benchmarks.gpu.results import Results
from benchmarks.gpu.running import Part, run_part
from benchmarks.gpu.sizes import TINY
from tests.commands import ONE_THREAD

ROOT = Path(__file__).parents[2]
# What nvidia-smi answers, by what it is asked: a driver of today, and "[N/A]" where a machine does not tell.
SMI = """#!/bin/sh
case "$1" in
*clocks.sm*) echo "1980, 3201, 512.25, 51, [N/A]" ;;
*driver_version*) echo "NVIDIA H200, 580.1, 1980, 3201, 700.00, Disabled, 4" ;;
*clocks_event_reasons*) echo "0x0000000000000004" ;;
*) echo "unknown field" >&2; exit 6 ;;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "programs" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def environment() -> object:
    """The measurement sets variables and handlers for its own process, which that of these tests is not."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with patch.dict(os.environ, ONE_THREAD):
        # The one that tests fork commands from: libraries are imported once.
        multiprocessing.forkserver.ensure_running()
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("smi")
def test_every_part_reports_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    )
    # One of somebody else's does not end this process.
    other = multiprocessing.get_context("fork").Process(target=multiprocessing.Event().wait, daemon=True)
    other.start()
    gpu.main()
    other.kill()
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    parts = record["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {part.name: "done" for part in gpu.PARTS}
    told = {name: part["told"] for name, part in parts.items()}
    for part, loops in {
        "first": ["bare"],
        "race": ["bare", "ours", "timm", "ours, uploading"],
        "clip": ["bare", "ours", "open_clip"],
        "engines": ["ddp", "fsdp", "deepspeed"],
        "again": ["bare"],
    }.items():
        for loop in loops:
            sizes = TINY.fewer() if part in ("clip", "engines") else TINY
            assert len(told[part][loop]["step_ms"]) == sizes.rounds, (part, loop)
        # A CPU has no peak, and nothing is made up for it.
        assert told[part]["peak_flops"] is None
        assert told[part]["flops_of_sample"] > 1e6
    assert told["run"]["steps_done_again"]["number"] > 0
    assert told["run"]["steps_done_again"]["largest_difference_of_loss"] == 0
    assert told["run"]["resumed"]["steps"] == TINY.epochs * TINY.images // TINY.batch
    pace = told["run"]["killed"]["pace"]
    assert pace["images_per_s_device"] > 0
    assert "mfu" not in pace
    assert told["heads"]["copies"] == 45
    assert set(told["tests"]["tests"].values()) == {"skipped"}
    assert told["waits"]["classify: trace"]["most"]
    assert parts["run"]["clocks"]["clocks.sm"] == [1980.0, 1980.0, 1980.0]
    page = (tmp_path / "out" / "results.md").read_text()
    assert page in capsys.readouterr().out
    assert "| timm | " in page
    assert "the bare loop at the end against the beginning" in page


def test_what_a_part_told_stays_when_it_fails_or_runs_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ENDING", 0.5)
    results = Results(tmp_path, machine=describe(), tiny=True)
    for name, seconds in (("fails", 60.0), ("hangs", 3.0), ("dies", 60.0), ("lingers", 60.0)):
        part = Part(name, seconds, f"tests.benchmarks.test_gpu:{name}")
        status, error = run_part(
            part,
            TINY,
            tmp_path / name,
            seconds=seconds,
            tell=lambda key, value, name=name: results.note(name, key, value),  # type: ignore[misc]
        )
        results.end(name, status, error=error, seconds=seconds, clocks={})
        results.keep_log(name, tmp_path / name / "log.txt")
    results.finish()
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {name: (part["status"], part["told"]) for name, part in parts.items()} == {
        "fails": ("failed", {"before": 1}),
        "hangs": ("out of time", {"before": 2}),
        "dies": ("failed", {"before": 3}),
        # It told all, and then waited for something of its own.
        "lingers": ("done", {"before": 4, "cpu_s": parts["lingers"]["told"]["cpu_s"]}),
    }
    assert parts["fails"]["error"] == "RuntimeError: no such kernel"
    assert "Traceback" in parts["fails"]["log"]
    assert parts["dies"]["error"] == "ended with status -9"
    assert not results.whole


def fails(sizes: object, folder: Path, tell: gpu.Any) -> None:
    tell("before", 1)
    raise RuntimeError("no such kernel")


def hangs(sizes: object, folder: Path, tell: gpu.Any) -> None:
    tell("before", 2)
    multiprocessing.Event().wait()


def dies(sizes: object, folder: Path, tell: gpu.Any) -> None:
    tell("before", 3)
    os.kill(os.getpid(), 9)


def lingers(sizes: object, folder: Path, tell: gpu.Any) -> None:
    tell("before", 4)
    threading.Thread(target=threading.Event().wait).start()


# What the command does but for its parts, of which the first hangs, and is forked from the command itself.
STOPPED = """
import multiprocessing
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.running import Part, Start
gpu.PARTS = tuple(Part(name, 60.0, "tests.benchmarks.test_gpu:tells") for name in ("hangs", "after"))
gpu.start = lambda: Start(multiprocessing.get_context("fork"), 0.0, [])
gpu.cli.run(gpu.main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_what_was_measured_and_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = ["--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    command = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def parts() -> gpu.Any:
        file = tmp_path / "out" / "results.json"
        return json.loads(file.read_text())["parts"] if file.exists() else {}

    wait_until(lambda: "process" in parts().get("hangs", {}).get("told", {}), command)
    command.send_signal(number)
    shown, _ = command.communicate(timeout=60)
    process = parts()["hangs"]["told"]["process"]
    wait_until(lambda: not is_there(process))
    stopped = number == signal.SIGTERM
    assert command.returncode == (130 if stopped else -number)
    told = {name: (part["status"], part["told"]) for name, part in parts().items()}
    assert told == {
        "hangs": ("stopped" if stopped else "running", {"process": process}),
        "after": ("left out", {}),
    }
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| after | left out |" in table
    assert not stopped or table in shown


def tells(sizes: object, folder: Path, tell: gpu.Any) -> None:
    tell("process", os.getpid())
    multiprocessing.Event().wait()


def wait_until(holds: Callable[[], bool], command: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        assert command is None or command.poll() is None, command.communicate()
        time.sleep(0.05)


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_costs_files_and_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path, machine=describe(), tiny=True, parts=["first"])

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.gpu.results.write_json", full)
        for value in (1, 2):
            results.note("first", "value", value)
        assert capsys.readouterr().out.count("No space left on device") == 1
        assert results.unwritten
    results.finish()
    assert not results.unwritten
    assert json.loads(results.path.read_text())["parts"]["first"]["told"] == {"value": 2}


def test_a_library_that_does_not_import_costs_the_parts_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        if name == "open_clip":
            raise AttributeError("torchvision has no attribute")

    monkeypatch.setattr("importlib.import_module", broken)
    found = runpy.run_path(str(ROOT / "benchmarks" / "gpu" / "preloaded.py"))
    assert found["FAILED"] == {"open_clip": "AttributeError: torchvision has no attribute"}


def test_wheels_that_fit_are_unpacked_whatever_is_wrong_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, target in (("WHEELS", tmp_path / "wheels"), ("PACKAGES", tmp_path / "packages")):
        monkeypatch.setattr(packages, name, target)
    (tmp_path / "wheels").mkdir()
    for tags in ("good-1.0-py3-none-any", "old-1.0-cp27-cp27mu-manylinux1_x86_64"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{tags}.whl", "w") as wheel:
            wheel.writestr(f"{tags.partition('-')[0]}.py", "")
    (tmp_path / "wheels" / "cut-1.0-py3-none-any.whl").write_bytes(b"PK")
    packages.unpack()
    assert [path.name for path in (tmp_path / "packages").glob("*.py")] == ["good.py"]
    assert next((tmp_path / "packages").glob("*.egg-info/entry_points.txt")).stat().st_size
    told = capfd.readouterr().err
    assert "old-1.0-cp27" in told
    assert "cut-1.0-py3-none-any.whl: File is not a zip file" in told


@pytest.mark.usefixtures("smi")
def test_clocks_are_those_that_the_driver_tells() -> None:
    assert describe()["gpu"] == {
        "name": "NVIDIA H200",
        "driver_version": "580.1",
        "clocks.max.sm": "1980",
        "clocks.max.mem": "3201",
        "power.limit": "700.00",
        "mig.mode.current": "Disabled",
        "memory.used": "4",
        "clocks_event_reasons.active": "0x0000000000000004",
    }
    clocks = Clocks()
    clocks.look()
    assert clocks.since() == {
        "clocks.sm": [1980.0] * 3,
        "clocks.mem": [3201.0] * 3,
        "power.draw": [512.25] * 3,
        "temperature.gpu": [51.0] * 3,
    }
    assert clocks.since() == {}
    assert ask(("no.such.field",)) == {}


def test_a_machine_that_cannot_compile_or_is_divided_is_told_of() -> None:
    machine = describe() | {"programs": {"gcc": None, "cc": None}, "gpu": {"mig.mode.current": "Enabled"}}
    told = " ".join(warnings(machine | {"shared_memory_mb": 64, "packages": {"deepspeed": None}}))
    for expected in ("no C compiler", "MIG", "/dev/shm has 64 MB", "deepspeed is not installed"):
        assert expected in told


def test_the_drift_of_the_machine_is_told(tmp_path: Path) -> None:
    results = Results(tmp_path, machine=describe(), tiny=False)
    for name, times in (("first", [10.0, 10.0, 11.0]), ("again", [10.5, 10.3, 10.4])):
        results.note(name, "bare", {"step_ms": times})
        results.note(name, "batch", 8)
        results.end(name, "done", error="", seconds=1.0, clocks={})
    results.finish()
    assert results.record["warnings"] == ["the pace changed by -3.8% from first to last: measure again"]


def test_without_a_gpu_only_the_tiny_one_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no GPU" in done.stderr
