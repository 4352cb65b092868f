"""Real runs on four nodes of the real Slurm, of which a rank is killed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.real_runs import Launcher, ends_as_undisturbed, killed_on_four_nodes

# Many ranks on few cores take their time.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]


@pytest.mark.parametrize(("engine", "cluster_file"), [("ddp", "standby.yaml"), ("deepspeed", "cluster.yaml")])
def test_a_killed_rank_costs_no_requeue_and_no_bit(
    launcher: Launcher, waiting: Callable[..., None], engine: str, cluster_file: str
) -> None:
    job = killed_on_four_nodes(launcher, waiting, engine, cluster_file)
    ends_as_undisturbed(launcher, job)
