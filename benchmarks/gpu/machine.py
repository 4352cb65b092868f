"""What the machine is, and the clocks that its GPU runs at. Settings are read and left as they are."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

SHARED = "/dev/shm"
# By which a driver is to be found: on Linux, and on Linux under Windows.
_DEVICES = ("nvidia[0-9]*", "dxg")
# What a driver takes for itself is less.
_TAKEN_MB = 2048
PACKAGES = ("torch", "torchvision", "triton", "timm", "transformers", "open_clip_torch", "deepspeed", "numpy")
# Asked of nvidia-smi. The reasons have another name in older drivers, and one unknown name fails them all.
_CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
_ONCE = (
    *("name", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"),
    *("mig.mode.current", "memory.used"),
)
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


def describe() -> dict[str, Any]:
    """Return processor, memory, programs and versions, and what nvidia-smi says; no process asks the GPU."""
    cores = sorted(os.sched_getaffinity(0))
    reasons = next((found for name in _REASONS if (found := ask((name,)))), {})
    return {
        "host": platform.platform(),
        "python": platform.python_version(),
        "cores": len(cores),
        "processor": _after("/proc/cpuinfo", "model name"),
        "memory": _after("/proc/meminfo", "MemTotal"),
        # Loader workers hand batches over there, and a container may have little of it.
        "shared_memory_mb": shutil.disk_usage(SHARED).free >> 20 if Path(SHARED).is_dir() else None,
        # Triton builds its launchers with a C compiler; nvcc is for DeepSpeed's operators, not used.
        "programs": {name: shutil.which(name) for name in ("gcc", "cc", "nvcc", "nvidia-smi")},
        "headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpu": ask(_ONCE) | reasons,
    }


def has_gpu(machine: dict[str, Any]) -> bool:
    """Whether there seems to be a GPU: by nvidia-smi, which may be missing, or by the driver's files."""
    return bool(machine["gpu"]) or any(True for name in _DEVICES for _ in Path("/dev").glob(name))


def warnings(machine: dict[str, Any], *, tiny: bool = False) -> list[str]:
    """Return what will make parts fail, or mean less."""
    found, programs = [], machine["programs"]
    if not (programs["gcc"] or programs["cc"] or os.environ.get("CC")):
        found.append("no C compiler: torch.compile needs one, set CC or expect that nothing is compiled")
    if not machine["headers"]:
        found.append("no Python.h (python3-dev): what Triton compiles may need it")
    if not machine["gpu"] and not tiny:
        found.append("nvidia-smi tells of no GPU: clocks and power are not known")
    used = machine["gpu"].get("memory.used", "")
    if used.isdigit() and int(used) > _TAKEN_MB and not tiny:
        found.append(f"{used} MB of the GPU's memory are taken: somebody else may be at work on it")
    if machine["shared_memory_mb"] is not None and machine["shared_memory_mb"] < 2048:
        found.append(
            f"{SHARED} has {machine['shared_memory_mb']} MB free: loader workers hand batches over there"
        )
    if machine["gpu"].get("mig.mode.current") == "Enabled":
        found.append("the GPU is divided (MIG): no peak is known of a part of it, so there is no MFU")
    found.extend(f"{name} is not installed" for name, version in machine["packages"].items() if not version)
    return found


class Clocks:
    """Clocks, power and temperature of the GPU while a part works."""

    def __init__(self) -> None:
        self._seen: list[dict[str, float]] = []

    def look(self) -> None:
        """Note what they are now."""
        found = {}
        for name, text in ask(_CLOCKS).items():
            try:
                found[name] = float(text)
            except ValueError:
                # "[N/A]": a virtual machine or a driver that does not tell.
                continue
        if found:
            self._seen.append(found)

    def since(self) -> dict[str, list[float]]:
        """Return lowest, median and highest of each since the last time; nothing where nobody tells."""
        seen, self._seen = self._seen, []
        names = dict.fromkeys(name for found in seen for name in found)
        values = {name: [found[name] for found in seen if name in found] for name in names}
        return {
            name: [min(each), statistics.median(each), max(each)] for name, each in values.items() if each
        }


def ask(names: tuple[str, ...]) -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU; nothing if there is no such program, or it fails."""
    # All that is measured is on the first GPU that torch sees.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    query = f"--query-gpu={','.join(names)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    return dict(zip(names, values, strict=True)) if done.returncode == 0 and len(values) == len(names) else {}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _after(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
