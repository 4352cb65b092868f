"""The most memory at once while something runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written to the latter, it has the kernel forget the highest resident size so far.
_PEAK = "5"


def forget_peak(device: str) -> None:
    """Begin to measure anew."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Some containers do not allow it; the peak is then that of the process so far.
        with contextlib.suppress(OSError):
            _FORGET.write_text(_PEAK)


def peak(device: str) -> int | None:
    """Return the most bytes at once since: of a GPU's memory, or resident of this whole process.

    None where the system does not tell.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)
