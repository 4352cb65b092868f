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
from nml.errors import UserError

# Forked from one process that has imported the libraries and never touched the GPU: CUDA does not live
# through a fork, and each part would spend ten seconds on its imports.
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["timm", "torch", "open_clip", "pretrain.assembly", "plugins.nmtune", "shards.write"]
# Seconds after which the clocks are looked at while a part works, and between two looks.
FIRST_LOOK, LOOK_EVERY = 0.5, 3.0

Tell = Callable[[str, Any], None]


def start() -> float:
    """Start the process that parts are forked from; return the seconds until it has imported the libraries.

    Raises:
        UserError: If a library has touched the GPU as it was imported: no fork could use it then.
    """
    began = time.perf_counter()
    process = CONTEXT.Process(target=_is_fresh)
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"one of {', '.join(PRELOADED)} does not import, or touches the GPU as it does")
    return time.perf_counter() - began


def _is_fresh() -> None:
    import torch

    raise SystemExit(int(torch.cuda._is_in_bad_fork()))


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


def run_part(
    part: Part, sizes: Sizes, folder: Path, *, seconds: float, tell: Tell, look: Callable[[], object]
) -> tuple[str, str]:
    """Run a part; return its status, ``done``, ``failed`` or ``out of time``, and what went wrong.

    Args:
        part: The part.
        sizes: How much of it.
        folder: For its files and its log; what is there is removed.
        seconds: What it may take.
        tell: Called with each name and value that it tells, as soon as it does.
        look: Called now and then while it works.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    environment = dict(os.environ)
    process = CONTEXT.Process(target=_work, args=(part.function, sizes, str(folder), sender, environment))
    process.start()
    sender.close()
    deadline, next_look = time.monotonic() + seconds, time.monotonic() + FIRST_LOOK
    error, ended = "", False
    while not ended and (left := deadline - time.monotonic()) > 0:
        if (till_look := next_look - time.monotonic()) <= 0:
            look()
            till_look, next_look = LOOK_EVERY, time.monotonic() + LOOK_EVERY
        ready = wait([receiver, process.sentinel], timeout=min(left, till_look))
        # What it told before it ended is still to be read.
        ended = ready == [process.sentinel]
        if receiver in ready:
            try:
                name, value = receiver.recv()
            except EOFError:
                break
            if name == "error":
                error = value
            else:
                tell(name, value)
    process.join(0 if left <= 0 else 5)
    if process.is_alive():
        _end(process)
        return "out of time", error or f"stopped after {seconds:.0f} s"
    # Loader workers and compilers that it left.
    _end(process)
    if error or process.exitcode:
        return "failed", error or f"ended with status {process.exitcode}"
    return "done", ""


def _end(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _work(function: str, sizes: Sizes, folder: str, sender: Connection, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(Path(folder, "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Under a test runner they may be something else than the descriptors.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        pkgutil.resolve_name(function)(sizes, Path(folder), lambda name, value: sender.send((name, value)))
        # Loader workers and runs that were waited for included.
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        sender.send(("cpu_s", round(sum(each.ru_utime + each.ru_stime for each in used), 2)))
    except BaseException as error:
        traceback.print_exc()
        sender.send(("error", f"{type(error).__name__}: {error}"[:2000]))
        raise SystemExit(1) from None
