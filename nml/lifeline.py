"""Processes that end with the one that started them, however that ends.

A process that is killed (``kill -9``, out of memory) can end nothing any more, and one that is stopped
(``kill -STOP``) not even itself. Its direct children can ask the kernel for a signal at that moment. All
else is left to a warden: a small process beside it that waits for its end and then sees to it that what
it started is gone.

This file is also the warden's program, and imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None, use_errno=True)
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.1
_RELEASE_SECONDS = 5.0
# Finding what a process has started means reading a file for each of its threads.
_LOOK_SECONDS = 0.5
# A look that comes later than this was kept from it: the warden was stopped too, as by `scontrol suspend`.
_GAP_SECONDS = 5.0
_SILENT_END = (
    "ended without a word: killed (kill -9, by the kernel for want of memory, or told to stop before it was "
    "ready to) or crashed"
)
# The variable that names the pipe through which a rank tells its agent how far it is.
BEATS = "NML_BEATS"
# The variable that names one start of the ranks of a run: others that come to the same port are strangers.
MEETING_NAME = "NML_MEETING"
_WATCH, _END, _RELEASE = "watch", "end", "release"


def end_with(parent: int, number: signal.Signals) -> None:
    """Have this process get a signal when the thread that forked it is gone.

    Args:
        parent: The process that forked it; if that is gone already, this one ends at once.
        number: The signal.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def die_with_this_process() -> Callable[[], None]:
    """Return what a child does before it becomes its program: ask for SIGTERM when this process is gone.

    For ``preexec_fn``; the launcher runs no threads.
    """
    parent = os.getpid()
    return lambda: end_with(parent, signal.SIGTERM)


def tell_agent(**beat: object) -> None:
    """Tell the agent of the launcher how far this rank is, where one watches it.

    Args:
        beat: ``phase``, what it does; and of one that tells every second or few from here on ``step``, how
            many it has made, ``pace``, the usual seconds of one, and ``since``, those without one so far.
    """
    # Not for wardens, which start in milliseconds.
    import json

    # Whoever does not read must not keep the rank.
    with contextlib.suppress(OSError):
        if BEATS in os.environ:
            os.write(int(os.environ[BEATS]), json.dumps(beat).encode() + b"\n")


def adopt_orphans() -> None:
    """Have what the descendants of this process leave behind become its own children."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Warden:
    """The process that ends what this one leaves behind, and this one too where it cannot do so itself.

    Args:
        seconds: How long the leaders of the groups may take to end by themselves, once this process is gone.
        name: What this process is called when the warden has to tell of its end, on this process's standard
            error; empty: it tells nothing, and what this process started beyond the groups is let alone.
        stopped: How long this process, and in a going one what it has started, may be stopped (SIGSTOP)
            before it is killed; None: for ever.
        alone: Whether this process itself may be stopped for ever.
    """

    def __init__(
        self, seconds: float, *, name: str = "", stopped: float | None = None, alone: bool = False
    ) -> None:
        words = [str(os.getpid()), str(seconds), str(stopped or 0), str(int(alone)), name]
        # A stop signal to all processes of a job must not find it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            # As a file, isolated: it has to start in milliseconds and needs nothing of the project.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None if name else subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def watch(self, group: int) -> None:
        """Have a process group, named by its leader, ended with this process."""
        self._say(f"{_WATCH} {group}")

    def expect_end(self, seconds: float) -> None:
        """Have this process killed unless it ends, or releases the warden, within ``seconds``."""
        self._say(f"{_END} {seconds}")

    def release(self) -> None:
        """Let the warden go: nothing is left to be ended."""
        self._say(_RELEASE)
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_RELEASE_SECONDS)
        except subprocess.TimeoutExpired:
            # It may be stopped itself.
            self._process.kill()
            self._process.wait()

    def _say(self, word: str) -> None:
        if self._process.stdin:
            # Without a warden the process still does its work.
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{word}\n".encode())
                self._process.stdin.flush()


@contextlib.contextmanager
def warden(
    seconds: float, *, name: str = "", stopped: float | None = None, alone: bool = False
) -> Iterator[Warden]:
    """Have a warden for as long as the block runs."""
    own = Warden(seconds, name=name, stopped=stopped, alone=alone)
    try:
        yield own
    finally:
        own.release()


def descendants(process: int) -> dict[int, str]:
    """Return the processes that a process has started, and those that they have, with when each was born."""
    found: dict[int, str] = {}
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        # A thread may end between the two looks at it.
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                if fields := _fields(child):
                    found[child] = fields[_BORN]
                    found |= descendants(child)
    return found


def kill(processes: dict[int, str]) -> None:
    """Kill the processes that :func:`descendants` named, and none that got the number of one since."""
    for process, born in processes.items():
        fields = _fields(process)
        if fields and fields[_BORN] == born and process != os.getpid():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)


def is_stopped(process: int) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP), and not by a debugger."""
    fields = _fields(process)
    return fields is not None and fields[_STATE] == "T"


def work_seconds(process: int) -> float:
    """Return the seconds that a process has had a core for, 0 once it has ended."""
    fields = _fields(process)
    return sum(map(int, fields[_WORK])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


class _Watched:
    """The process that a warden watches, seen from the warden.

    Args:
        process: Its number.
        name: See :class:`Warden`.
        stopped: Likewise, 0 for ever.
        alone: Likewise.
    """

    def __init__(self, process: int, name: str, stopped: float, *, alone: bool) -> None:
        self._process, self._name, self._longest, self._alone = process, name, stopped, alone
        self._started: dict[int, str] = {}
        self._groups: list[int] = []
        self._stopped_since: dict[int, float] = {}
        self._deadline: tuple[float, float] | None = None
        self._looked = 0.0
        self._seen = time.monotonic()

    def hear(self, words: list[str]) -> bool:
        """Take note of one line of its; return whether it lets the warden go."""
        match words:
            case [word, group] if word == _WATCH:
                self._groups.append(int(group))
            case [word, seconds] if word == _END:
                self._deadline = (time.monotonic() + float(seconds), float(seconds))
        return words == [_RELEASE]

    def look(self) -> bool:
        """Look at it once, and kill it where it is time to; return whether it is still there."""
        now = time.monotonic()
        gap, self._seen = now - self._seen, now
        if os.getppid() != self._process:
            if self._name and self._deadline is None:
                self._tell(_SILENT_END)
            return False
        if gap > _GAP_SECONDS:
            self._stopped_since.clear()
        if self._name and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look_at_stopped(now)
        if self._deadline and now > self._deadline[0]:
            self._kill(self._process, f"failed, and had not ended {self._deadline[1]:.0f} s later")
        return True

    def _look_at_stopped(self, now: float) -> None:
        """Kill what has been stopped for too long: what it has started, and if it goes on itself, or it."""
        started = descendants(self._process)
        self._started |= started
        # Stopped together, as in a terminal, they go on together.
        looked_at = {self._process} if is_stopped(self._process) else started.keys()
        before = self._stopped_since
        self._stopped_since = {one: before.get(one, now) for one in looked_at if is_stopped(one)}
        for one, since in self._stopped_since.items():
            if self._longest and now - since > self._longest and not (self._alone and one == self._process):
                self._kill(one, f"was stopped (SIGSTOP) for {self._longest:.0f} s")

    def end_the_rest(self, seconds: float) -> None:
        """End what it has left behind."""
        kill(self._started)
        groups = self._groups
        deadline = time.monotonic() + seconds
        while groups := [group for group in groups if _lives(group)]:
            for group in groups:
                # Without its leader a group is what the leader left behind.
                if not _leads(group) or time.monotonic() > deadline:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(group, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _kill(self, process: int, why: str) -> None:
        self._tell(f"{why}; it is killed", process)
        if process == self._process:
            self._started |= descendants(process)
            # Once is enough: from here on its end is known.
            self._longest, self._deadline = 0.0, (float("inf"), 0.0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def _tell(self, what: str, process: int | None = None) -> None:
        with contextlib.suppress(OSError):
            print(f"{self._name}: process {process or self._process} {what}", file=sys.stderr, flush=True)


def _keep_watch(process: int, seconds: float, stopped: float, *, alone: bool, name: str) -> None:
    """Watch a process until it lets go or is gone; then end what it has left behind."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    watched = _Watched(process, name, stopped, alone=alone)
    pipes, rest = [sys.stdin.fileno()], b""
    while watched.look():
        if not select.select(pipes, [], [], _POLL_SECONDS)[0]:
            continue
        said = os.read(pipes[0], 4096)
        if not said:
            # Gone, or about to be; children of its that are forked may hold the pipe open for longer.
            pipes.clear()
        *lines, rest = (rest + said).split(b"\n")
        for line in lines:
            if watched.hear(line.decode().split()):
                return
    watched.end_the_rest(seconds)


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
    fields = _fields(process)
    return int(fields[_GROUP]) if fields else None


_STATE, _GROUP, _WORK, _BORN = 0, 2, slice(11, 13), 19


def _fields(process: int) -> list[str] | None:
    """Return /proc/PROCESS/stat from behind the name, which may hold anything; None once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[_STATE] in "ZX" else fields


if __name__ == "__main__":
    _keep_watch(
        int(sys.argv[1]),
        float(sys.argv[2]),
        float(sys.argv[3]),
        alone=sys.argv[4] == "1",
        name=sys.argv[5],
    )
