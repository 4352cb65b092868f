"""The ways out of a run: asked to stop, it saves first; what failed is told; nothing is left running.

A stop signal raises a flag here, and all ranks decide together in the training loop.

An exception leaves more behind than it unwinds. Loader workers are deaf to the signal by which Python
would end them before it waits for them; threads that write a checkpoint wait for ranks that are gone; a
process group whose peers are gone is not taken down. So the cause is told first, what may still be closed
is given a few seconds, and then the process ends its children and leaves without waiting for anything.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from nml import cli
from nml.errors import UserError
from nml.files import is_full
from nml.lifeline import Warden, descendants, kill, warden
from pretrain.world import World

# What schedulers warn with, and what people and process managers send.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
STOPPED_STATUS = 75  # EX_TEMPFAIL: try again later
FAILED_STATUS = 1
# What a failed rank may take to close its files, and to complete a checkpoint that is being written.
CLOSING_SECONDS = 10.0
# Before the others give up a rank that is stopped, so that it is the one that is named.
_SOONER = 0.9
_WORKER_KILLED = "is killed by signal: Killed"
# Words of torch's that do not say what to do, and what that is.
_HINTS = {
    _WORKER_KILLED: "kill -9, or by the kernel for want of memory: try fewer --recipe.data.workers",
    "DataLoader timed out": "a worker is stopped, or the storage that it reads does not answer",
    **dict.fromkeys(
        ("closed by peer", "reset by peer", "broken pipe", "timed out", "nccl"),
        "another rank is gone or does not answer: its log says why",
    ),
}


class StopRequest:
    """Notes the first stop signal of this process; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._note)
        # A launcher starts this process with them blocked, so that one that came before is heard of now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    @property
    def name(self) -> str:
        """The signal's name, or nothing."""
        return signal.Signals(self.signal).name if self.signal else ""

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        # A loader worker forked from this process inherits the handler, not the duty.
        if os.getpid() != self._process:
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def watched(world: World) -> Iterator[Warden]:
    """Have a warden for this rank as long as the block runs.

    It ends what a killed rank has started, and a rank or a loader worker that is stopped for as long as the
    others would wait for it. Nobody waits for a process alone: that may be stopped in its terminal overnight.
    """
    stopped = world.timeout.total_seconds() * _SOONER
    with warden(0.0, name=_name(world), stopped=stopped, alone=world.size == 1) as own:
        yield own


@contextlib.contextmanager
def failing(world: World, own: Warden) -> Iterator[None]:
    """Tell of what fails inside the block, and have this process end soon after.

    Raises:
        SystemExit: In place of an exception that is none of those of which :func:`nml.cli.run` makes one
            line; it has been told with its traceback then, and once more as the last line.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        own.expect_end(CLOSING_SECONDS)
        raise
    except BaseException as error:
        # torch raises wherever this process is when it hears of a dead worker: that would be the last word.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        own.expect_end(CLOSING_SECONDS)
        if is_full(error) or isinstance(error, BrokenPipeError):
            # A full disk, or whoever read what this run says is gone: neither is a fault of the program.
            raise
        traceback.print_exc()
        print(f"{_name(world)} failed: {_cause(error)}", file=sys.stderr, flush=True)
        raise SystemExit(FAILED_STATUS) from error


def run(main: Callable[[], Any]) -> NoReturn:
    """Call ``main`` as :func:`nml.cli.run` does, and leave without waiting for threads or children."""
    try:
        cli.run(main)
    # An exception holds the frames it came through, and they hold loaders, which wait for their workers
    # when they are let go: not before those are gone.
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else FAILED_STATUS)
    except BaseException:
        # Where nothing can be written, the end is still one.
        with contextlib.suppress(Exception):
            traceback.print_exc()
        _leave(FAILED_STATUS)


def leave_stuck(world: World) -> NoReturn:
    """End this process from another thread than the one that does not end, and show what that does."""
    told = f"{_name(world)} failed: the other ranks are gone, and this one does not end. What it does:\n"
    os.write(2, told.encode())
    faulthandler.dump_traceback(all_threads=True)
    kill(descendants(os.getpid()))
    os._exit(FAILED_STATUS)


def _leave(status: int) -> NoReturn:
    try:
        kill(descendants(os.getpid()))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(status)


def _name(world: World) -> str:
    return f"rank {world.rank} of {world.size} on {socket.gethostname()}"


def _cause(error: BaseException) -> str:
    """Return an exception in one line, with what to do about it where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if first.startswith("Caught ") and len(lines) > 1:
        # Raised in a loader worker, whose traceback it holds.
        return f"{lines[-1]} ({first.removeprefix('Caught ').rstrip('.')})"
    line = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if error.__cause__ is not None and _WORKER_KILLED in str(error.__cause__):
        # Heard of while it waited for a batch, where torch catches it to say less.
        return _cause(error.__cause__)
    if isinstance(error, ConnectionError | EOFError):
        # Of the pipe through which a loader worker hands over a batch; torch has its own between ranks.
        return f"{line} (a loader worker {_WORKER_KILLED}? {_HINTS[_WORKER_KILLED]})"
    hint = next((hint for words, hint in _HINTS.items() if words.lower() in line.lower()), "")
    return f"{line} ({hint})" if hint else line
