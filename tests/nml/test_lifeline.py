"""Wardens: nothing outlives a process that is killed, stopped or stuck, and nobody else is harmed."""

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

# A process with a warden and a child of its own, which may be stuck in what it does.
WATCHED = """
import pathlib, subprocess, sys, time
from nml.lifeline import warden
with warden(0.0, name="it", stopped=float(sys.argv[1])) as own:
    child = subprocess.Popen(["sleep", "600"])
    if sys.argv[2] == "killed":
        # What is gone cannot be asked any more what it has started: past the warden's next look.
        time.sleep(2)
    if sys.argv[2] == "stuck":
        own.expect_end(1.0)
    pathlib.Path("child").write_text(f"{child.pid}\\n")
    if sys.argv[2] != "done":
        time.sleep(600)
"""
WITH_ITS_PARENT = """
import os, pathlib, signal, time
from nml.lifeline import end_with
parent = os.getpid()
if os.fork() == 0:
    end_with(parent, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("child").write_text(f"{os.getpid()}\\n")
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[psutil.Popen, psutil.Process]]:
    """Start Python text, and return its process and the child that it names in a file."""

    def begin(text: str, *words: str) -> tuple[psutil.Popen, psutil.Process]:
        process = psutil.Popen([sys.executable, "-c", text, *words], cwd=tmp_path, stderr=subprocess.PIPE)
        file = tmp_path / "child"
        wait_for(lambda: file.exists() and file.read_text().endswith("\n"))
        return process, psutil.Process(int(file.read_text()))

    return begin


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("event", "words", "said"),
    [
        (signal.SIGKILL, ("0", "killed"), "ended without a word"),
        (signal.SIGSTOP, ("1", "sleeps"), "was stopped (SIGSTOP) for 1 s; it is killed"),
        (0, ("0", "stuck"), "failed, and had not ended 1 s later; it is killed"),
    ],
)
def test_a_process_that_cannot_end_its_own_takes_them_along(
    event: int, words: tuple[str, str], said: str, start: Callable[..., tuple[psutil.Popen, psutil.Process]]
) -> None:
    process, child = start(WATCHED, *words)
    os.kill(process.pid, event)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    # To the end, which comes when the warden is gone too.
    assert f"it: process {process.pid} {said}" in process.stderr.read().decode()
    wait_for(lambda: gone(child))


def test_a_process_that_may_be_stopped_for_ever_goes_on(
    start: Callable[..., tuple[psutil.Popen, psutil.Process]],
) -> None:
    process, child = start(WATCHED, "0", "sleeps")
    process.suspend()
    [warden] = [one for one in process.children() if one.pid != child.pid]
    looks = warden.num_ctx_switches().voluntary
    wait_for(lambda: warden.num_ctx_switches().voluntary > looks + 20)
    assert process.status() == psutil.STATUS_STOPPED
    process.kill()


def test_what_a_process_has_started_is_let_alone_once_its_warden_is_released(
    start: Callable[..., tuple[psutil.Popen, psutil.Process]],
) -> None:
    process, child = start(WATCHED, "0", "done")
    assert process.wait() == 0
    assert process.stderr is not None
    assert not gone(child)
    child.kill()
    assert process.stderr.read() == b""


def test_a_child_may_end_with_its_parent_though_it_ignores_stop_signals(
    start: Callable[..., tuple[psutil.Popen, psutil.Process]],
) -> None:
    process, child = start(WITH_ITS_PARENT)
    process.kill()
    wait_for(lambda: gone(child))
