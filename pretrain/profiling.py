"""A torch profiler trace of a few steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain import layout

_WARMUP = 2


def trace(run: Path, steps: int) -> Any:
    """Start tracing ``steps`` steps after two others, into RUN/logs/profile; None where there are none."""
    if not steps:
        return None
    import torch

    folder = run / layout.LOGS / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(folder / f"trace-{profiler.step_num}.json"))

    profiler = torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=0, warmup=_WARMUP, active=steps, repeat=1),
        on_trace_ready=write,
    )
    profiler.start()
    return profiler
