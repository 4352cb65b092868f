"""A part of the measurement in a process of its own: ended at its budget, and what it told by then stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.sizes import Sizes

# Forked from one process that has imported the libraries and never touched the GPU: CUDA does not live
# through a fork, and each part would spend ten seconds on its imports.
FORKED = multiprocessing.get_context("forkserver")
PRELOADED = "benchmarks.gpu.preloaded"
# Seconds after which the clocks are looked at while a part works, and between two looks.
FIRST_LOOK, LOOK_EVERY = 0.5, 3.0
# How much of the time a look may take: a driver that is in trouble answers late.
LOOKING = 0.1
# Seconds that a part may take to end by itself once it has told all, and to be gone once it is killed.
ENDING, KILLED = 5.0, 10.0
# And that the libraries may take to import.
STARTING = 120.0

LOG = "log.txt"
# What a part tells at its end, by names that no value has; and what it has told that was killed.
_DONE, _ERROR, _SILENT = "/done", "/error", "/silent"

Tell = Callable[[str, Any], None]


class Start(NamedTuple):
    """How parts are started.

    Attributes:
        context: Of multiprocessing.
        seconds: Until the libraries were imported.
        warnings: What did not work.
    """

    context: Any
    seconds: float
    warnings: list[str]


def start() -> Start:
    """Start the process that parts are forked from, or find that each has to import the libraries itself."""
    began = time.perf_counter()
    FORKED.set_forkserver_preload([PRELOADED])
    receiver, sender = FORKED.Pipe(duplex=False)
    # Python itself waits without end for a process to fork from.
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, STARTING)
    try:
        process = FORKED.Process(target=_look_around, args=(sender,))
        process.start()
        sender.close()
        fresh, failed = receiver.recv()
        process.join()
    # It is gone, hangs, or none could be started: a library may end the process that imports it.
    except (OSError, EOFError) as error:
        fresh, failed = False, {"the process to fork from": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - began
    warnings = [f"{name} does not import: {why}" for name, why in failed.items()]
    if fresh:
        return Start(FORKED, seconds, warnings)
    warnings.append("parts cannot be forked from there: each imports the libraries itself")
    return Start(multiprocessing.get_context("spawn"), seconds, warnings)


def _too_late(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's signature
    raise TimeoutError(f"not there after {STARTING:.0f} s")


def _look_around(sender: Connection) -> None:
    from benchmarks.gpu.preloaded import FAILED

    torch = sys.modules.get("torch")
    sender.send((torch is None or not torch.cuda._is_in_bad_fork(), FAILED))


class Part(NamedTuple):
    """One thing to measure.

    Attributes:
        name: What it is called in the results.
        seconds: What it may take.
        function: ``module:function``, called with sizes, a folder of its own and :data:`Tell`.
    """

    name: str
    seconds: float
    function: str


class _Heard:
    """What a part has told, passed on as it comes.

    Args:
        receiver: Its end of the pipe.
        tell: Called with names and values.
    """

    def __init__(self, receiver: Connection, tell: Tell) -> None:
        self._receiver, self._tell = receiver, tell
        self.error = ""
        self.over = False

    def hear(self) -> None:
        """Take what is there, if anything is."""
        while not self.over:
            try:
                if not self._receiver.poll():
                    return
                name, value = self._receiver.recv()
            # Ended, perhaps in the middle of a word.
            except (EOFError, OSError):
                name, value = _ERROR, _SILENT
            if name in (_DONE, _ERROR):
                self.over, self.error = True, value
            else:
                self._tell(name, value)


def run_part(
    part: Part,
    sizes: Sizes,
    folder: Path,
    *,
    seconds: float,
    tell: Tell,
    look: Callable[[], object] = lambda: None,
    watch: Callable[[int], object] = lambda _: None,
    context: Any = FORKED,
) -> tuple[str, str]:
    """Run a part; return its status, ``done``, ``failed`` or ``out of time``, and what went wrong.

    However this ends, by an exception too, nothing of the part is left running.

    Args:
        part: The part.
        sizes: How much of it.
        folder: For its files and its log; what is there is removed.
        seconds: What it may take.
        tell: Called with each name and value that it tells, as soon as it does.
        look: Called now and then while it works.
        watch: Called with the process group that it leads.
        context: How its process is started.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    receiver, sender = context.Pipe(duplex=False)
    environment = dict(os.environ)
    process = context.Process(target=_work, args=(part.function, sizes, str(folder), sender, environment))
    process.start()
    try:
        watch(process.pid)
        sender.close()
        heard, deadline = _Heard(receiver, tell), time.monotonic() + seconds
        next_look = time.monotonic() + FIRST_LOOK
        while not heard.over and (left := deadline - time.monotonic()) > 0:
            if (till_look := next_look - time.monotonic()) <= 0:
                began = time.monotonic()
                look()
                took = time.monotonic() - began
                till_look = max(LOOK_EVERY, took / LOOKING)
                next_look = time.monotonic() + till_look
            ready = wait([receiver, process.sentinel], timeout=min(left, till_look))
            heard.hear()
            # What it told before it ended has been heard.
            if ready and receiver not in ready:
                break
        heard.hear()
        # Having told all, it may still wait for what it has started.
        process.join(ENDING if heard.over else 0)
        status = process.exitcode
    finally:
        # Loader workers and compilers that it left, too.
        gone = _end(process)
    more = "" if gone else f", and is not gone {KILLED:.0f} s after it was killed"
    if heard.over and heard.error != _SILENT:
        return ("failed" if heard.error else "done"), (heard.error + more).removeprefix(", ")
    if status is None and not heard.over:
        return "out of time", f"stopped after {seconds:.0f} s{more}"
    return "failed", f"ended with status {status}{more}"


def _end(process: Any) -> bool:
    """Kill what a part has started; return whether it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # It may not lead its group yet.
        os.kill(process.pid, signal.SIGKILL)
    process.join(KILLED)
    return process.exitcode is not None


def _work(function: str, sizes: Sizes, folder: str, sender: Connection, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    try:
        log = os.open(Path(folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Under a test runner they may be something else than the descriptors.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        pkgutil.resolve_name(function)(sizes, Path(folder), lambda name, value: sender.send((name, value)))
        # Loader workers and runs that were waited for included.
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        sender.send(("cpu_s", round(sum(each.ru_utime + each.ru_stime for each in used), 2)))
        sender.send((_DONE, ""))
    except BaseException as error:
        # The disk of the log may be full.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        sender.send((_ERROR, f"{type(error).__name__}: {error}"[:2000]))
        raise SystemExit(1) from None
