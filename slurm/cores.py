"""How many cores a rank has, and how many loader workers of its recipe fit on them.

A rank wants a core for itself and one for each loader worker. What a user says stands; what they leave open
follows: the cores a job asks for follow the recipe's workers, as far as a node has them, and the workers
follow the cores where those are fewer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nml.untrusted import parse_yaml
from slurm.cluster import Resources
from slurm.controller import answer

WORKERS = "recipe.data.workers"


class Fit(NamedTuple):
    """How the loader of a recipe fits.

    Attributes:
        workers: Loader workers of a rank in place of the recipe's; None keeps those.
        note: What to tell the user, or nothing.
    """

    workers: int | None
    note: str


def loader_workers(command: str) -> int:
    """Return the loader workers of a rank that a resolved command asks for."""
    recipe = (parse_yaml(command) or {}).get("recipe") or {}
    return int((recipe.get("data") or {}).get("workers") or 0)


def most_cores(resources: Resources, *, on_slurm: bool) -> int | None:
    """Return how many cores a rank can have here, or None where that cannot be told."""
    if not on_slurm:
        return max(1, len(os.sched_getaffinity(0)) // (resources.nodes * resources.tasks))
    cores = _node_cores(resources.partition)
    return max(1, cores // resources.tasks) if cores else None


def cores_for(workers: int, most: int | None) -> int:
    """Return the cores that a rank asks for where its user does not say.

    Args:
        workers: Of its loader.
        most: What :func:`most_cores` tells.
    """
    return workers + 1 if most is None else min(workers + 1, most)


def fit_workers(wanted: int, cores: int, overrides: Sequence[str], *, on_slurm: bool) -> Fit:
    """Return what to do about a loader whose workers are more than its rank has cores for.

    Args:
        wanted: The workers that the recipe, or the user, asks for.
        cores: The cores of a rank.
        overrides: The user's overrides of the recipe: workers that are among them stay.
        on_slurm: Whether more cores can be asked for.
    """
    fitting = min(wanted, max(1, cores - 1))
    if fitting == wanted:
        return Fit(None, "")
    more = f"--cpus-per-task {wanted + 1}" if on_slurm else ""
    has = f"a rank has {cores} core{'s' if cores > 1 else ''}"
    if any(word.partition("=")[0] == f"--{WORKERS}" for word in overrides):
        fits = " or ".join(filter(None, [more, f"--{WORKERS} {fitting}"]))
        return Fit(None, f"{has} for itself and {wanted} loader workers, which share them; {fits} fits")
    other = " or ".join(filter(None, [more, f"--{WORKERS} N"]))
    return Fit(
        fitting, f"{has}, so its loader gets {fitting} of the recipe's {wanted} workers; otherwise: {other}"
    )


def fit_loaders(
    wanted: Mapping[str, int],
    overrides: Sequence[str],
    *,
    on_slurm: bool,
    ask: Callable[[int | None], Resources],
    jobs: int = 1,
) -> tuple[Resources, dict[str, int]]:
    """Return what to ask for, and the workers of the recipes whose own do not fit; a line tells of each.

    Args:
        wanted: The workers that each recipe asks for.
        overrides: The user's overrides of the recipes.
        on_slurm: Whether a job is asked for, or runs with what this machine has.
        ask: Returns the resources with that many cores a rank, where their user does not say.
        jobs: How many such runs share this machine.
    """
    most = most_cores(ask(None), on_slurm=on_slurm)
    most = most and max(1, most // max(1, jobs))
    resources = ask(cores_for(max(wanted.values(), default=0), most))
    cores = resources.cpus_per_task if on_slurm or most is None else most
    fits = {
        recipe: fit_workers(workers, cores, overrides, on_slurm=on_slurm)
        for recipe, workers in wanted.items()
    }
    for recipe, fit in fits.items():
        if fit.note:
            print(f"{recipe}: {fit.note}", flush=True)
    return resources, {recipe: fit.workers for recipe, fit in fits.items() if fit.workers is not None}


def _node_cores(partition: str) -> int | None:
    """Return the cores of the largest node of a partition, or of the default one."""
    named = [f"--partition={partition}"] if partition else []
    shown = answer(["sinfo", "--noheader", "--Node", "--format=%P %c", *named]).stdout
    nodes = [line.split() for line in shown.splitlines()]
    # The default partition has an asterisk.
    counts = [
        int(node[1].rstrip("+"))
        for node in nodes
        if len(node) == 2 and node[1].rstrip("+").isdecimal() and (partition or node[0].endswith("*"))
    ]
    return max(counts, default=None)
