"""Whether the cluster can give what a job asks for, told before anything is submitted.

sbatch accepts much that can never start, and such a job waits for ever.
"""

from __future__ import annotations

from typing import NamedTuple

from nml.errors import UserError, unknown_name
from slurm.cluster import Resources
from slurm.controller import answer
from slurm.sbatch_words import parse_minutes


class Partition(NamedTuple):
    """A partition's limits.

    Attributes:
        name: Its name.
        default: Whether jobs that name none go there.
        nodes: How many nodes a job in it may have at most.
        minutes: The longest time limit in minutes, or None for no limit.
        cancels: Whether jobs in it are cancelled for others, not requeued.
    """

    name: str
    default: bool
    nodes: int
    minutes: int | None
    cancels: bool = False


def check_fits(resources: Resources) -> None:
    """Check that the partition exists and that nodes and time are within its limits.

    Raises:
        UserError: If not.
    """
    partitions = {one.name: one for one in show_partitions()}
    if not partitions:
        return
    if resources.partition:
        # Several may be named; sbatch takes the first that has room.
        names = resources.partition.split(",")
        for name in names:
            if name not in partitions:
                raise unknown_name("--partition", name, partitions)
    else:
        names = [one.name for one in partitions.values() if one.default]
    if not names:
        raise UserError(
            "--partition: none given, and the cluster has no default", possible=", ".join(partitions)
        )
    wanted = [partitions[name] for name in names]
    nodes = max(one.nodes for one in wanted)
    if resources.nodes + resources.spare_nodes > nodes:
        spare = f" and spare_nodes {resources.spare_nodes}" if resources.spare_nodes else ""
        raise UserError(f"--nodes {resources.nodes}{spare}: partition {','.join(names)} has at most {nodes}")
    limits = [one.minutes for one in wanted]
    longest = max((limit for limit in limits if limit is not None), default=0)
    if None not in limits and resources.minutes > longest:
        raise UserError(
            f"--time {resources.time}: partition {','.join(names)} allows at most {longest} minutes",
            mend=f"--time {longest}; a run that reaches its limit is requeued and goes on",
        )


def show_partitions() -> list[Partition]:
    """Return the cluster's partitions; none where it does not answer."""
    return read_partitions(answer(["scontrol", "show", "partition", "--oneliner"]).stdout)


def read_partitions(shown: str) -> list[Partition]:
    """Read what ``scontrol show partition --oneliner`` prints."""
    partitions = []
    for line in shown.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" not in fields:
            continue
        counts = [int(fields[key]) for key in ("TotalNodes", "MaxNodes") if fields.get(key, "").isdecimal()]
        limit = fields.get("MaxTime", "UNLIMITED")
        partitions.append(
            Partition(
                fields["PartitionName"],
                fields.get("Default") == "YES",
                min(counts, default=0),
                None if limit in ("UNLIMITED", "INFINITE") else parse_minutes(limit),
                "CANCEL" in fields.get("PreemptMode", "").split(","),
            )
        )
    return partitions
