"""The real rooms on the real Slurm: the same run on nodes and on this machine, disturbed and not.

What stops or kills a job is Slurm's own: the requeue of an administrator, the time limit, preemption,
and a node that dies with all its processes. It comes while the ranks and their loader workers are in
the middle of a step.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.real_runs import WAIT_SECONDS, Job, Launcher, losses, weights

# Many ranks on few cores take their time.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
STEPS = 4 * 19
# Where the run is disturbed, no two in the same epoch.
REQUEUED, BEREFT, WARNED, PREEMPTED = 8, 22, 40, 58


def was_told(process: psutil.Process, number: int) -> bool:
    """Whether a signal waits for a process that is held, or the process goes on.

    Slurm sends SIGCONT along with its warning.
    """
    if process.status() != psutil.STATUS_STOPPED:
        return True
    masks = re.findall(r"(?:Shd|Sig)Pnd:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@contextlib.contextmanager
def in_mid_step(job: Job, step: int) -> Iterator[None]:
    """Hold a job soon after ``step``; it goes on when the block ends."""
    try:
        job.waiting(lambda: job.hold(step), f"step {step}", WAIT_SECONDS)
        yield
    finally:
        job.release()


def reach_the_time_limit(job: Job) -> None:
    minutes = int(job.field("RunTime").split(":")[-2])
    job.update(f"TimeLimit={minutes + 2}")


def be_preempted(job: Job) -> None:
    # It needs every node that is left.
    nodes = [node for node in job.cluster.nodes if node in job.cluster.daemons]
    words = (
        "--partition=urgent",
        f"--nodes={len(nodes)}",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=true",
    )
    job.cluster.call("sbatch", *words)


def stop(job: Job, step: int, tell: Callable[[Job], None], waiting: Callable[..., None]) -> None:
    """Have Slurm tell a job in the middle of a step that it is to stop."""
    with in_mid_step(job, step):
        held = job.held
        assert held is not None
        waiting(lambda: held.status() == psutil.STATUS_STOPPED, "the hold")
        tell(job)
        # Every process of the step gets the signal; the rank acts on it once it goes on.
        waiting(lambda: was_told(held, signal.SIGUSR2), "the signal", WAIT_SECONDS)
    job.come_back()


@pytest.fixture(scope="module")
def disturbed(launcher: Launcher, waiting: Callable[..., None]) -> tuple[Job, Path]:
    """A run that is requeued, bereft of a node, at its time limit and preempted, and the same undisturbed."""
    words = ("--engine", "fsdp")
    job = Job(launcher, waiting, "nodes", "--nodes", "2", "--cluster-file", "cluster.yaml", *words)
    with in_mid_step(job, REQUEUED):
        job.cluster.call("scontrol", "requeue", job.id)
    job.come_back()
    with in_mid_step(job, BEREFT):
        assert job.held
        job.cluster.kill_node(job.held.environ()["SLURMD_NODENAME"])
    # It takes Slurm a while to believe that a node is dead.
    here = launcher.train_here("here", 2, *words)
    job.come_back()
    # The dead node stays away: the controller would tell it to end what it had of the job, as long as it had
    # not been heard, and with that the attempt that runs there by then.
    stop(job, WARNED, reach_the_time_limit, waiting)
    # Slurm refuses another limit to a job that it has preempted, so this is not left to every return.
    job.update("TimeLimit=60")
    stop(job, PREEMPTED, be_preempted, waiting)
    job.finish()
    status, said = here.end()
    assert status == 0, said
    return job, launcher.folder / "here"


def test_a_disturbed_run_ends_with_the_weights_of_an_undisturbed_one(disturbed: tuple[Job, Path]) -> None:
    job, here = disturbed
    assert len(losses(job.path)) == STEPS
    assert losses(job.path) == losses(here)
    assert weights(job.path) == weights(here)


def test_every_disturbance_is_told_from_the_others(disturbed: tuple[Job, Path]) -> None:
    requeued, bereft, *rest = disturbed[0].closings("reason")
    # Slurm ends the batch script of a job that it requeues, sooner or later.
    assert not requeued or requeued == "stopped by SIGTERM"
    assert not bereft or bereft.startswith("lost node")
    assert rest == ["stopped by SIGUSR2", "stopped by SIGUSR2", "complete"]


def test_what_was_told_to_stop_goes_on_where_it_stopped(disturbed: tuple[Job, Path]) -> None:
    job, _ = disturbed
    fresh, requeued, bereft, *told = job.openings()
    assert fresh == 0
    # From the newest complete checkpoint.
    assert requeued <= bereft <= told[0]
    assert bereft > 0
    assert told[0] >= WARNED
    assert told[1] >= PREEMPTED
    assert told == [int(step) for step in re.findall(r"stopped at step (\d+) of", job.log())[-2:]]
