"""Where a step makes the host wait for the device, and what ten steps spend their time on."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.apart import Apart
from benchmarks.gpu.packages import ROOT
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.turns import alone, objective_and_batches, seconds_of, synchronize
from benchmarks.train_loops import Round, project
from nml.recipe import Recipe
from pretrain.loading import Batch

# What reads a value from the device, or needs one to know the shape of its answer.
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")
# What CUDA's own interface is asked to wait for, as the profiler names it.
_CALLS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync")
_OPERATIONS = 12


def count(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Tell the waits of a step by the line that causes them, and the summary of a trace."""
    apart = Apart()
    with alone() as world:
        for name, recipe in (("classify", sizes.recipe()), ("clip", sizes.clip_recipe())):
            with apart(name):
                objective, batches = objective_and_batches(recipe, sizes, 2)
                place = folder / name
                place.mkdir(exist_ok=True)
                step = project(recipe, world, objective, place)
                step([batches[number % 2] for number in range(sizes.warm)])
                looked_at = [batches[number % 2] for number in range(sizes.traced)]
                with apart(f"{name}: waits"):
                    tell(f"{name}: waits", waits(step, looked_at))
                with apart(f"{name}: trace"):
                    tell(f"{name}: trace", trace(step, looked_at, recipe))
    apart.tell()


def waits(step: Round, batches: list[Batch]) -> dict[str, Any]:
    """Return waits a step by place: those that CUDA's calls cause, and operations that read from a device."""
    found: dict[str, Any] = {"steps": len(batches)}
    cuda = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        synchronize()
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batches)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{_short(warning.filename)}:{warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    )
    found["of CUDA"] = _a_step(places, len(batches)) if cuda else None
    with _Reads() as reads:
        step(batches)
    found["reads"] = _a_step(reads.found, len(batches))
    return found


class _Reads(TorchDispatchMode):
    """Counts operations that make the host wait, by the line of the project that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _READS or (name in ("_to_copy", "copy_") and _blocks(args, kwargs or {}, answer)):
            self.found[f"{name} at {_asking()}"] += 1
        return answer


def _blocks(args: Any, kwargs: Any, answer: torch.Tensor) -> bool:
    """Return whether a copy goes from one device to another, and the host waits for it."""
    devices = {tensor.device.type for tensor in (*args, answer) if isinstance(tensor, torch.Tensor)}
    return len(devices) > 1 and not kwargs.get("non_blocking") and True not in args[2:]


def _asking() -> str:
    """Return the innermost line of the project that is being executed."""
    frames = [
        frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT / "pretrain"))
    ]
    frame = frames[-1] if frames else traceback.extract_stack()[0]
    return f"{_short(frame.filename)}:{frame.lineno}"


def _short(path: str) -> str:
    return path.removeprefix(f"{ROOT}/")


def _a_step(found: Counter[str], steps: int) -> dict[str, float]:
    return {place: round(number / steps, 2) for place, number in found.most_common()}


def trace(step: Round, batches: list[Batch], recipe: Recipe) -> dict[str, Any]:
    """Return how busy the device was over some steps, and with what; of a CPU what its threads did."""
    cuda = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=activities) as profiler:
        seconds = seconds_of(step, batches)
    clock = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if not cuda or _on_device(event)]
    spent = sorted(((getattr(event, clock), event.key, event.count) for event in events), reverse=True)
    # Microseconds.
    busy = sum(time for time, _, _ in spent) / 1e6
    calls = {event.key: event.count / len(batches) for event in profiler.key_averages()}
    return {
        "steps": len(batches),
        "images": recipe.global_batch * len(batches),
        "step_ms": round(1000 * seconds / len(batches), 3),
        "busy": round(busy / seconds, 4),
        "calls": {name: calls.get(name, 0) for name in _CALLS},
        "launches": round(sum(number for name, number in calls.items() if "LaunchKernel" in name), 1),
        "most": [
            {"name": name[:90], "ms": round(time / 1000 / len(batches), 4), "calls": count / len(batches)}
            for time, name, count in spent[:_OPERATIONS]
        ],
    }


def _on_device(event: Any) -> bool:
    return event.device_type != torch.autograd.DeviceType.CPU
