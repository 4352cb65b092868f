"""A torch profiler trace of a few steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch

from nml import layout

_WARMUP = 2


class Tracer:
    """Traces ``steps`` steps after two others, into RUN/logs/profile.

    Args:
        run: The run folder.
        steps: Steps to trace.
    """

    def __init__(self, run: Path, steps: int) -> None:
        self._folder = run / layout.LOGS / "profile"
        # The first call only starts it: what comes before the first step is none of the trace.
        self._calls = 1 + _WARMUP + steps
        self._done = 0
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=_WARMUP, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._from = 0

    def step(self, number: int, *, last: bool) -> None:
        """Note that step ``number`` of the run is done; the ``last`` of the process ends the trace early."""
        if self._done == self._calls:
            return
        if self._done == 0:
            self._from = number + _WARMUP + 1
            self._profiler.start()
        else:
            self._profiler.step()
        self._done = self._calls if last else self._done + 1
        if self._done == self._calls:
            self._profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"trace-from-step-{self._from}.json"
        profiler.export_chrome_trace(str(path))
        print(f"profile: {path}", flush=True)
