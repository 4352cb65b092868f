"""What the daemons of a cluster are told: slurm.conf and slurmdbd.conf."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.slurm_cluster.slurm_ports import free_port

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=4
SlurmdTimeout=10
SlurmctldTimeout=5
MessageTimeout=20
MailProg=/bin/true
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{accounting}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=cheap Nodes={names} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=0
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_NODE = "CPUs=2 RealMemory=4000"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage_port}
StorageUser=root
StoragePass=none
StorageLoc=slurm
"""


def write_slurm_conf(
    folder: Path, nodes: Sequence[str], *, accounting_port: int | None, settings: Sequence[str] = ()
) -> Path:
    """Write etc/slurm.conf of a cluster and return its path.

    Args:
        folder: The cluster's folder.
        nodes: Names of its nodes.
        accounting_port: Where slurmdbd listens, or None for no accounting.
        settings: Further lines.
    """
    host = socket.gethostname()
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} {_NODE}" for name in nodes
    ]
    accounting = (
        "AccountingStorageType=accounting_storage/none"
        if accounting_port is None
        else _ACCOUNTING.format(port=accounting_port, folder=folder)
    )
    file = folder / "etc" / "slurm.conf"
    file.write_text(
        _SLURM_CONF.format(
            host=host,
            folder=folder,
            controller_port=free_port(),
            accounting="\n".join([accounting, *settings]),
            nodes="\n".join(lines),
            names=f"n[0-{len(nodes) - 1}]",
        )
    )
    return file


def write_slurmdbd_conf(folder: Path, *, port: int, storage_port: int) -> None:
    """Write etc/slurmdbd.conf, which slurmdbd refuses to read where others may."""
    file = folder / "etc" / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(
        _SLURMDBD_CONF.format(folder=folder, host=socket.gethostname(), port=port, storage_port=storage_port)
    )
