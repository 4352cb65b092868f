"""Child processes that end with the launcher, however it ends.

A launcher that is killed (``kill -9``, out of memory) can end nothing any more. Its direct children
ask the kernel for a signal at that moment, and stop in order. What they had started in turn, loader
workers above all, is left to a warden: a small process that waits for the launcher's end and then
sees to it that every process group is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_RELEASE = "release"
_POLL_SECONDS = 0.1


def die_with_this_process() -> Callable[[], None]:
    """Return what a child does before it becomes its program: ask for SIGTERM when this process is gone.

    For ``preexec_fn``; the launcher runs no threads.
    """
    parent = os.getpid()

    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have gone in between.
        if os.getppid() != parent:
            os._exit(1)

    return ask


class Warden:
    """The process that ends what this one leaves behind.

    Args:
        seconds: How long the leaders of the groups may take to end by themselves.
    """

    def __init__(self, seconds: float) -> None:
        # As a file, isolated: it has to start in milliseconds and needs nothing of the project.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Have a process group, named by its leader, ended with this process."""
        self._say(str(group))

    def release(self) -> None:
        """Let the warden go: every group has ended."""
        self._say(_RELEASE)
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, word: str) -> None:
        if self._process.stdin:
            # Without a warden the launcher still does its work.
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{word}\n".encode())
                self._process.stdin.flush()


@contextlib.contextmanager
def warden(seconds: float) -> Iterator[Warden]:
    """Have a warden for as long as the block runs."""
    own = Warden(seconds)
    try:
        yield own
    finally:
        own.release()


def _keep_watch(seconds: float) -> None:
    """Wait for the launcher's end: its end of the pipe closes. Then end the groups it named."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    words = sys.stdin.read().split()
    if _RELEASE in words:
        return
    groups = [int(word) for word in words]
    deadline = time.monotonic() + seconds
    while groups := [group for group in groups if _lives(group)]:
        for group in groups:
            # Without its leader a group is what the leader left behind.
            if not _leads(group) or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _lives(group: int) -> bool:
    """Whether a process group has a process other than an ended leader that nobody waits for."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return _leads(group) or any(_group_of(int(file.name)) == group for file in Path("/proc").glob("[0-9]*"))


def _leads(group: int) -> bool:
    return _group_of(group) == group


def _group_of(process: int) -> int | None:
    """Return the group of a process that runs, None for one that has ended."""
    try:
        # Behind the name, which may hold anything: state, parent, group.
        state, _, group = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(group)


if __name__ == "__main__":
    _keep_watch(float(sys.argv[1]))
