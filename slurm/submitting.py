"""A sweep on a cluster: what is missing of it, submitted as far as the queue takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slurm import dag
from slurm.cluster import STAGES, Resources
from slurm.invocation import command_line
from slurm.journal import Job
from slurm.members import LAUNCH
from slurm.plan import Part, make_plan
from slurm.pretraining import run_member
from slurm.registry import Registry
from slurm.snapshot import take_snapshot
from slurm.study import Study

INCOMPLETE_STATUS = 75  # EX_TEMPFAIL: the same command again goes on
_MOST_NAMED = 8


def submit_sweep(study: Study, resources: dict[str, Resources]) -> int:
    """Submit what is missing and not in the queue yet; return the exit status.

    Args:
        study: What the user wants.
        resources: What each stage asks for.
    """
    folder = study.folder / LAUNCH
    registry = Registry(folder)
    jobs: dict[str, str] = {}
    while True:
        # The queue first, the files second: what ends in between is then found complete. The other way round
        # it would be in neither, and be submitted again.
        active = registry.active(part.member for part in make_plan(study, run_member))
        parts = make_plan(study, run_member)
        todo = [part for part in parts if not part.complete and part.member.name not in active]
        _say_counts(parts, active)
        submitted = dag.submit_parts(
            parts,
            {name: job.id for name, job in active.items()},
            resources=resources.__getitem__,
            snapshot=take_snapshot(folder / "snapshots") if todo else folder,
            folder=folder,
            journal=registry,
        )
        jobs |= submitted.jobs
        if not submitted.taken:
            break
        print("another command launches a part of it: looking again")
    left = len(todo) - len(submitted.jobs)
    if todo or jobs:
        arrays = dict.fromkeys(job.partition("_")[0] for job in jobs.values())
        print(f"submitted {len(jobs)} members as jobs {', '.join(arrays)}")
        if left:
            print(f"{left} members are left: {submitted.full}; the same command again submits them")
        print(f"follow it: {command_line('status', study.folder)}")
    else:
        print("nothing to submit")
    print(f"sweep: {study.folder}")
    return INCOMPLETE_STATUS if left else 0


def _say_counts(parts: Sequence[Part], active: dict[str, Job]) -> None:
    for stage in STAGES:
        own = [part for part in parts if part.stage == stage]
        if own:
            counts = Counter(
                "complete" if part.complete else "in the queue" if part.member.name in active else "to do"
                for part in own
            )
            print(f"{stage}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    others = [(name, job) for name, job in active.items() if not job.is_own]
    for name, job in others[:_MOST_NAMED]:
        print(f"{name} runs as job {job.id} of {job.user}")
    if len(others) > _MOST_NAMED:
        print(f"and {len(others) - _MOST_NAMED} more run as jobs of others")
