"""What is told of a run while it trains: metrics.jsonl, a line a step, and whoever else listens."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from nml import layout
from nml.curves import metrics_lines
from nml.errors import UserError
from nml.files import write_bytes, write_json
from pretrain.goodput import Ledger
from pretrain.utilisation import ALONE, Work


class Observer(Protocol):
    """Hears of every line of a run."""

    def __call__(self, line: dict[str, Any]) -> None:
        """Take note of a line."""
        ...

    def close(self) -> None:
        """Finish: the process is done with the run, or the run with the process."""
        ...


class StepReport(NamedTuple):
    """One training step, as it went.

    Attributes:
        loss: Mean over the ranks; may be infinite or NaN.
        lr: Learning rate.
        grad_norm: Before clipping; 0 where there is none.
        seconds: Spent in the step.
        waited: Spent waiting for the batch.
        ranks: Since the step before, a :class:`pretrain.stragglers.OwnTime` a row.
        applied: Whether the weights were updated.
    """

    loss: float
    lr: float
    grad_norm: float
    seconds: float
    waited: float
    ranks: np.ndarray
    applied: bool


class Recorder:
    """Writes the lines of a run on rank 0, and keeps the books on its time on every rank.

    Args:
        folder: The run folder.
        is_main: Whether this process writes.
        steps_per_epoch: Steps of an epoch.
        global_batch: Samples of a step.
        device: Whose memory is told.
        work: What a sample is to the devices.
        started: When the process began, by time.perf_counter().
        observers: Called with every line.
        on_error: Told of a disk that takes no more lines; None lets the error through.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_main: bool,
        steps_per_epoch: int,
        global_batch: int,
        device: torch.device,
        started: float,
        observers: list[Observer],
        work: Work = ALONE,
        on_error: Callable[[OSError], None] | None = None,
    ) -> None:
        self.ledger = Ledger(started)
        self._folder = folder
        self._is_main = is_main
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = global_batch
        self._device = device
        self._work = work
        self._observers = observers
        self._on_error = on_error
        self._metrics: Metrics | None = None

    def open(self, step: int) -> None:
        """Start writing after ``step`` steps; lines beyond it are taken back."""
        if self._is_main:
            self._metrics = Metrics(self._folder / layout.METRICS, step, self.ledger)

    def step(self, number: int, report: StepReport) -> None:
        """Tell of a step, the ``number``-th of the run."""
        division = self.ledger.step(report.seconds + report.waited, report.ranks, applied=report.applied)
        rate = self._global_batch / (report.seconds + report.waited)
        values: dict[str, Any] = {
            "epoch": number / self._steps_per_epoch,
            "loss": report.loss if math.isfinite(report.loss) else None,
            "lr": report.lr,
            "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) and report.grad_norm else None,
            "samples_seen": number * self._global_batch,
            "samples_per_s": round(rate, 2),
            **self._work.rates(rate),
            "step_s": round(report.seconds, 5),
            "data_wait_s": round(division.data_wait, 5),
            "waited_s": round(division.waiting, 5),
            "memory_mb": _memory_mb(self._device),
        }
        if len(report.ranks) > 1 or division.waiting:
            host = self.ledger.hosts[division.rank]
            values |= {"slowest_rank": division.rank, "slowest_host": host, "slowest_why": division.why}
        self.tell("step", number, values)

    def tell(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write a line, and let the observers know."""
        if self._metrics is not None:
            try:
                line = self._metrics.write(event, step, values)
            except OSError as error:
                # The other ranks have to learn of it first; then all stop together.
                if self._on_error is None:
                    raise
                self._on_error(error)
                return
            for observer in self._observers:
                observer(line)

    def note(self, name: str, record: dict[str, Any]) -> Path:
        """Write a record among the logs, if the disk has room, and return where."""
        path = self._folder / layout.LOGS / name
        if self._is_main:
            # It explains an error that is told all the same.
            with contextlib.suppress(OSError):
                write_json(path, record)
        return path

    def close(self) -> None:
        """Finish the file and let the observers finish; once more does no harm."""
        for observer in self._observers:
            observer.close()
        if self._metrics is not None:
            self._metrics.close()

    def done(self, step: int, record: dict[str, Any]) -> None:
        """Write DONE.json and say where the time went."""
        self.close()
        if self._metrics is None:
            return
        books = self.ledger.as_json()
        seconds = round(self.ledger.wall, 1)
        write_json(
            self._folder / layout.DONE,
            {
                "step": step,
                "seconds": seconds,
                "goodput": books["goodput"],
                "lost_s": books["lost_s"],
                "waited_for": books["waited_for"],
                **record,
            },
        )
        print(f"done: {step} steps in {seconds:.0f} s, {self.ledger.in_words()}", flush=True)


class Metrics:
    """The file of a run; only rank 0 has one.

    Lines after the checkpoint that a run resumes from are taken back, since those steps are done again;
    the time they took is not forgotten but booked as lost.

    Args:
        path: The file.
        step: Steps done in the checkpoint that the run resumes from, 0 at the beginning.
        ledger: Filled with the times of earlier attempts.

    Raises:
        UserError: If there is a file, and lines of it are none that a run writes.
    """

    def __init__(self, path: Path, step: int, ledger: Ledger) -> None:
        lines = list(metrics_lines(path))
        try:
            kept = [line for line in lines if line["step"] <= step]
            if lines:
                ledger.resume(kept[-1] if kept else None, lines[-1])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: does not read: {type(error).__name__}: {error}",
                possible="lines that pretrain.run wrote",
                mend="remove the others, or the file: the run goes on without what it said",
            ) from error
        # Also where the first line alone was begun: what is written next would be joined to it.
        if path.exists():
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._ledger = ledger

    def write(self, event: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Append a line and return it."""
        line = {
            "event": event,
            "step": step,
            **values,
            **self._ledger.as_json(),
            "time": round(time.time(), 3),
        }
        self._file.write(json.dumps(line) + "\n")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _memory_mb(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
