"""The processes of a cluster, told by the SLURM_CONF they were started with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def kill_processes(conf: Path, node: str | None = None) -> None:
    """Kill the daemons and job processes of a cluster, or of one of its nodes.

    Args:
        conf: The cluster's slurm.conf.
        node: A node; None for all of them, and the daemons besides.
    """
    found = list(processes_of(conf, node))
    # The step's daemon before its tasks: it would tell srun how they ended.
    for daemons in (True, False):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if (process.name() == "slurmstepd") is daemons:
                    process.kill()


def processes_of(conf: Path, node: str | None = None) -> Iterator[psutil.Process]:
    """Yield the daemons and job processes of a cluster: those started with its SLURM_CONF.

    Args:
        conf: The cluster's slurm.conf.
        node: Only the processes of this node's jobs, and its slurmd.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid in mine:
                continue
            # A slurmstepd has written its name over its variables; its children have them.
            stepd = process.name() == "slurmstepd"
            for one in [process, *(process.children(recursive=True) if stepd else [])]:
                environment = one.environ()
                if environment.get("SLURM_CONF") == str(conf) and (
                    node is None or environment.get("SLURMD_NODENAME") == node
                ):
                    yield process
                    break
