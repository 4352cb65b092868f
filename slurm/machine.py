"""This machine: whether it can submit to Slurm, and if not, why; and its GPUs, told without importing torch.

Installed client tools are no cluster: a controller has to answer, within a bounded time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError

ANSWER_SECONDS = 10
_TOOLS = ("sbatch", "srun", "scontrol", "squeue")


class Detection(NamedTuple):
    """Whether a Slurm controller answers.

    Attributes:
        found: Jobs can be submitted from here.
        reason: Where ``found`` is false, why, as a phrase.
        asked: Whether a controller was looked for at all.
    """

    found: bool
    reason: str
    asked: bool = True

    @property
    def sentence(self) -> str:
        """Why jobs run on this machine."""
        return f"no Slurm found ({self.reason})" if self.asked else "--cluster local"


def detect_slurm(seconds: float = ANSWER_SECONDS) -> Detection:
    """Ask the primary and backup controllers whether one of them is up.

    Args:
        seconds: How long to wait for an answer.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return Detection(False, f"{missing[0]} is not on PATH")
    try:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Detection(False, f"its controller did not answer within {seconds:g} s")
    except OSError as error:
        return Detection(False, f"scontrol does not run: {error.strerror}")
    # `Slurmctld(primary) at host is UP`, a line a controller.
    if answer.returncode == 0 and " is UP" in answer.stdout:
        return Detection(True, "")
    return Detection(False, "its client tools are installed, but no controller answers")


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
