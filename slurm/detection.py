"""Whether this machine can submit to Slurm, and if not, why.

Installed client tools are no cluster: a controller has to answer, within a bounded time.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

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
