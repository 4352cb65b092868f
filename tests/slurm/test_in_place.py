"""Real runs on four nodes of the real Slurm, of which a rank is killed or frozen."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from nml.layout import newest_step
from tests.slurm.real_runs import WAIT_SECONDS, Job, Launcher, losses, weights
from tests.slurm_cluster.slurm_daemons import SlurmCluster

# Many ranks on few cores take their time.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def launcher(shared_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(shared_cluster, tmp_path_factory.mktemp("training"))
    yield launcher
    launcher.end()
    shared_cluster.reset()


ON_FOUR = ("--epochs", "2", "--recipe.global_batch", "128", "--recipe.data.workers", "0")
KILLED, LAST = 7, 18
STALLED = re.compile(r"rank 3 on n3.*: no sign of life for \d+s")


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_ranks_killed_or_frozen_on_four_nodes_cost_no_requeue_and_no_bit(
    launcher: Launcher, waiting: Callable[..., None], engine: str
) -> None:
    words = (*ON_FOUR, "--engine", engine)
    job = Job(launcher, waiting, engine, "--nodes", "4", *words, cluster_file="impatient.yaml")
    waiting(lambda: newest_step(job.path) and len(losses(job.path)) >= KILLED, "a checkpoint", WAIT_SECONDS)
    rank = job.rank(2)
    assert rank is not None, job.log()
    rank.kill()
    print(f"{engine}: the next step came {job.pause(time.time()):.1f} s after the kill")
    reasons = [r"rank 2 was killed on n2 \(SIGKILL\)"]
    if engine == "fsdp":
        # While the ranks write what they saved.
        waiting((job.path / "checkpoints" / "step-00000012").exists, "a save", WAIT_SECONDS, pause=0.002)
        rank = job.rank(3)
        assert rank is not None, job.log()
        rank.suspend()
        stopped = time.time()
        waiting(lambda: STALLED.search(launcher.status(job.path)), "its name", WAIT_SECONDS, pause=2)
        print(f"{engine}: the next step came {job.pause(stopped):.1f} s after the stop")
        reasons.append(r"rank 3 was frozen on n3: no sign of life for \d+ s \(.*\)")
    job.finish()
    assert job.field("Restarts") == "0"
    assert job.closings("reason") == ["complete"]
    [again] = job.path.glob("launch/attempts/*/restarts.jsonl")
    told = [json.loads(line)["reason"] for line in again.read_text().splitlines()]
    assert all(re.fullmatch(*pair) for pair in zip(reasons, told, strict=True)), told
    here = launcher.folder / f"{engine}-here"
    status, said = launcher.train_here(here.name, 4, *words).end()
    assert status == 0, said
    assert len(losses(job.path)) == LAST
    assert losses(job.path) == losses(here)
    assert weights(job.path) == weights(here)
