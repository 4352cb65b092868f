"""``--probe``: the encoder is measured while it trains, checkpoint by checkpoint, by a process beside rank 0.

That process reads what a checkpoint has exported, as ``probes.run`` does after the run, and so measures the
weights that are exported: whole ones under every engine, averaged ones where the recipe averages, with the
statistics of all ranks. What trains gives it nothing but the numbers of steps, and a save for each of them.

A step that is to be measured has a mark, a file, from before its checkpoint counts until there is an answer.
Checkpoints with a mark are not retired. What a killed run leaves marked is measured when it is continued; a
step whose checkpoint never came to count is trained again, and loses its mark. So every result is of a
checkpoint that the run went on from, or could have.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from nml import layout
from nml.errors import UserError
from nml.files import make_folder, write_bytes
from nml.lifeline import tell_agent, work_seconds
from nml.objectives import declared
from nml.untrusted import Untrusted, check_object, parse_json
from pretrain.ending import STOPPED_STATUS, StopRequest
from pretrain.options import Options
from pretrain.world import World

_CODE = Path(__file__).resolve().parents[1]
# Whatever lies in the folder that it is started in, and wherever this code does.
_START = (
    f"import runpy, sys; sys.path.insert(0, {str(_CODE)!r}); "
    "runpy.run_module('probes.along', run_name='__main__', alter_sys=True)"
)
_BEAT_SECONDS = 1.0
_DIED = "the process that measures ended without an answer: killed, for want of memory perhaps, or crashed"


class Probing:
    """The probes of a run.

    Args:
        options: Of the run; they name a task.
        world: This process; all but rank 0 only know when to save.
    """

    def __init__(self, options: Options, world: World) -> None:
        self._options = options
        self._is_main = world.is_main
        self._marks = options.run_dir / layout.PROBING
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._stop: StopRequest | None = None
        self._device = options.probe_device
        self._seconds = 0.0

    def due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be saved and measured after an epoch, counted from 1."""
        return epoch % self._options.probe_every == 0 or epoch == self._options.recipe.epochs

    def start(self) -> None:
        """Start the process that measures, on rank 0, and leave it to look at what it is asked for."""
        if self._device == "auto":
            import torch

            here = torch.cuda.is_available()
            self._device = f"cuda:{torch.cuda.current_device()}" if here else "cpu"
        self._child = self._start()

    def wait_ready(self) -> None:
        """Wait until it has looked, and say what it measures.

        Raises:
            UserError: If it cannot measure what it is asked for.
        """
        if self._child is None:
            return
        answer = self._child.first()
        if "ready" not in answer:
            raise UserError(answer.get("refused", f"--probe {' '.join(self._options.probe)}: {_DIED}"))
        every = self._options.probe_every
        epochs = f"every {every} epochs" if every > 1 else "every epoch"
        # As is exported.
        weights = "averaged weights " if self._options.recipe.ema else ""
        for text in answer["ready"]:
            print(f"probing {weights}{epochs} on {self._device}: {text}", flush=True)

    def resume(self, step: int) -> None:
        """Measure what an earlier attempt has left marked, up to the step that the run goes on from."""
        if not self._is_main:
            return
        kept = layout.kept_steps(self._options.run_dir)
        for marked in sorted(self.marked()):
            if marked <= step and marked in kept:
                self.ask(marked)
            else:
                self._unmark(marked)

    def mark(self, step: int) -> None:
        """Note that a step is to be measured, before its checkpoint counts."""
        make_folder(self._marks)
        write_bytes(self._marks / layout.step_name(step), b"")

    def marked(self) -> set[int]:
        """Return the steps that are to be measured and are not yet."""
        return layout.marked_steps(self._options.run_dir)

    def ask(self, step: int) -> None:
        """Have a complete checkpoint measured."""
        with self._lock:
            if self._child is None or not self._child.ask(step):
                # It has ended since, for which it is not to blame that asks.
                self._child = self._start()
                self._child.ask(step)

    def heed(self, stop: StopRequest) -> None:
        """Let a stop signal end :meth:`finish` too, also one that comes before."""
        self._stop = stop

    def finish(self) -> int:
        """Wait until all is measured, or until asked to stop; say which, and return the exit status."""
        # It imports torch, which a refused option need not wait for.
        from pretrain.checkpoints import retire

        stop, ended = self._stop, None
        # One that dies is followed by another.
        while (child := self._child) is not None and child is not ended:
            if not child.finish(stop):
                child.kill()
                print(
                    f"stopped ({stop.name if stop else ''}) with {len(self.marked())} checkpoints to measure"
                    "; the same command continues",
                    file=sys.stderr,
                    flush=True,
                )
                return STOPPED_STATUS
            ended = child
        if ended is None:
            return 0
        with contextlib.suppress(OSError):
            self._marks.rmdir()
        checkpoints = self._options.recipe.checkpoints
        retire(self._options.run_dir, keep_last=checkpoints.keep_last, keep_every=checkpoints.keep_every)
        print(f"probes: {self._seconds:.1f} s of processor time", flush=True)
        return 0

    def catch_up(self) -> int:
        """Measure what a run that is done has left marked, ended in its last seconds; return the status."""
        if not self.marked():
            print(
                "--probe: no checkpoint of it waits to be measured; those it has kept: python -m probes.run "
                f"--checkpoint {shlex.quote(str(self._options.run_dir))} --steps all --task TASK"
            )
            return 0
        self.heed(StopRequest())
        self.start()
        self.wait_ready()
        self.resume(sys.maxsize)
        return self.finish()

    def close(self) -> None:
        """End the process that measures, whatever it does; marks stay for when the run is continued."""
        if self._child is not None:
            self._child.kill()

    def _start(self) -> _Child:
        options = self._options
        words = ["--run", str(options.run_dir), "--device", self._device]
        words += ["--library", str(declared(options.recipe.objective).library), "--probe", *options.probe]
        for flag, value in (("--results", options.probe_results), ("--tasks-root", options.probe_tasks_root)):
            words += [flag, value] if value is not None else []
        return _Child(words, self._heard, self.ask)

    def _heard(self, step: int, answer: dict[str, Any]) -> None:
        """Tell of the answer for a step."""
        self._seconds += answer.get("cpu_s", 0.0)
        for text in answer.get("told", ()):
            tqdm.write(f"step {step}: {text}")
        for text in answer.get("failed", ()):
            tqdm.write(f"warning: probe of step {step}: {text}", file=sys.stderr)
        self._unmark(step)

    def _unmark(self, step: int) -> None:
        (self._marks / layout.step_name(step)).unlink(missing_ok=True)


def tell_marked(run: Path) -> None:
    """Say what a run that is not probed leaves as it is."""
    if waiting := len(layout.marked_steps(run)):
        wait, are = ("checkpoint of it waits", "is") if waiting == 1 else ("checkpoints of it wait", "are")
        print(f"{waiting} {wait} to be measured, and {are} kept for --probe", flush=True)


class _Child:
    """The process that measures, and a thread that hears its answers.

    Args:
        words: Its command line.
        heard: Called with a step and the answer for it.
        again: Called with each step that it had not begun with when it died.
    """

    def __init__(
        self, words: list[str], heard: Callable[[int, dict[str, Any]], None], again: Callable[[int], None]
    ) -> None:
        self._heard, self._again = heard, again
        self._lock = threading.Lock()
        self._waiting: list[int] = []
        self._ended = self._let_go = False
        self._first: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = subprocess.Popen(
            # -P: a file beside the user's data is no module.
            [sys.executable, "-P", "-c", _START, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The cores are those of what trains.
            env={"OMP_NUM_THREADS": "1"} | os.environ,
            # Ctrl-C is for the run, which stops it then.
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._hear, name="probes", daemon=True)
        self._thread.start()

    def first(self) -> dict[str, Any]:
        """Return what it says before it is asked anything; nothing if it ended before."""
        return self._first.get()

    def ask(self, step: int) -> bool:
        """Have a step measured; return False where it has ended and nothing is."""
        with self._lock:
            if self._ended:
                return False
            self._waiting.append(step)
            # Of one that has just ended, the thread that hears it tells.
            with contextlib.suppress(OSError):
                self._say(f"{step}\n")
            return True

    def finish(self, stop: StopRequest | None = None) -> bool:
        """Wait until it has answered everything and ended; return False where that is to stop before."""
        with self._lock, contextlib.suppress(OSError):
            self._input.close()
        worked, moved = 0.0, time.monotonic()
        while self._thread.is_alive():
            if stop is not None and stop.signal is not None:
                return False
            self._thread.join(_BEAT_SECONDS)
            # This process stands still meanwhile: what it waits for is a sign of life as long as it works.
            before, worked, now = worked, work_seconds(self._process.pid), time.monotonic()
            moved = now if worked > before else moved
            tell_agent(phase="probing", step=0, pace=_BEAT_SECONDS, since=now - moved)
        self._process.wait()
        return True

    def kill(self) -> None:
        """End it; what it was asked stays without an answer."""
        self._let_go = True
        self._process.kill()
        self.finish()

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _say(self, line: str) -> None:
        self._input.write(line)
        self._input.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        refused: str | None = None
        for line in self._process.stdout:
            try:
                answer = check_object(parse_json(line))
            except Untrusted:
                # A Python may print as it starts, and so may a library of a head.
                continue
            if "step" not in answer:
                refused = answer.get("refused")
                self._first.put(answer)
                continue
            self._heard(answer["step"], answer)
            with self._lock:
                self._waiting.remove(answer["step"])
        self._first.put({})
        with self._lock:
            self._ended = True
            left = [] if self._let_go else self._waiting
        # It measures one after the other: those behind the first had no part in its end.
        lost = left if refused else left[:1]
        for step in lost:
            self._heard(step, {"failed": [refused or _DIED]})
        for step in left[len(lost) :]:
            self._again(step)
