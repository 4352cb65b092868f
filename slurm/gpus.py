"""The GPUs of this machine, told without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from nml.errors import UserError

_DEVICES = Path("/dev")


def visible_gpus(devices: Path = _DEVICES) -> list[str]:
    """Return the GPUs that programs started from here may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in (part.strip() for part in named.split(",")) if name and name != "-1"]
    found = (file.name.removeprefix("nvidia") for file in devices.glob("nvidia[0-9]*"))
    return sorted((name for name in found if name.isdecimal()), key=int)


def gpus_of_ranks(world: int, *, wanted: bool) -> list[str]:
    """Return a GPU for each of ``world`` local ranks, or an empty list: then all run on the CPU.

    Two ranks never share a GPU: NCCL refuses that.

    Args:
        world: Number of ranks.
        wanted: Whether the user asked for GPUs.

    Raises:
        UserError: If they did, and there are too few.
    """
    found = visible_gpus()
    if len(found) >= world:
        return found[:world]
    if wanted:
        raise UserError(
            f"--gpus-per-node: {world} ranks, but this machine has {len(found)} GPUs",
            mend="ask for fewer, or leave it out to run on the CPU",
        )
    return []
