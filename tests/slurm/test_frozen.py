"""A real run on four nodes of the real Slurm: a rank is killed, and another one frozen while it saves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.slurm.real_runs import WAIT_SECONDS, Launcher, ends_as_undisturbed, killed_on_four_nodes

# Many ranks on few cores take their time.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
STALLED = re.compile(r"rank 3 on n3.*: no sign of life for \d+s")


def test_ranks_killed_and_frozen_cost_no_requeue_and_no_bit(
    launcher: Launcher, waiting: Callable[..., None]
) -> None:
    job = killed_on_four_nodes(launcher, waiting, "fsdp", "impatient.yaml")
    # It is looked for before: few steps are left after that save.
    rank = job.rank(3)
    assert rank is not None, job.log()
    # While the ranks write what they saved.
    waiting((job.path / "checkpoints" / "step-00000012").exists, "a save", WAIT_SECONDS, pause=0.002)
    rank.suspend()
    stopped = time.time()
    waiting(lambda: STALLED.search(launcher.status(job.path)), "its name", WAIT_SECONDS, pause=0.3)
    print(f"the next step came {job.pause(stopped):.1f} s after the stop")
    ends_as_undisturbed(launcher, job, r"rank 3 was frozen on n3: no sign of life for \d+ s \(.*\)")
