"""A sweep's parts as Slurm jobs: arrays that wait for each other, nothing kept alive outside.

Members of a stage ask for the same, so they go out as arrays, as few as their waiting allows. Where each
waits for an element of one array, they take the numbers of those elements, and Slurm's ``aftercorr`` lets
each start as soon as its own is done. The report waits for the probes' end, good or bad: it shows what
there is.

The plan is made before anything is submitted, of what the queue holds and what is there; ``JOB2`` in it
stands for the id that its second job will have. A dry run shows the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from slurm.cluster import STAGES, Resources
from slurm.controller import answer
from slurm.journal import Job
from slurm.members import Submission
from slurm.plan import Part

_DEFAULT_ARRAY_SIZE = 1001


class PlannedJob(NamedTuple):
    """A job or an array to be submitted.

    Attributes:
        name: What stands for its id in the dependencies of later ones, for example ``JOB2``.
        stage: The stage of its members.
        parts: Its members.
        indices: Their numbers in the array, rising; empty for a single job.
        dependency: Slurm's words for what it waits for, or nothing.
    """

    name: str
    stage: str
    parts: tuple[Part, ...]
    indices: tuple[int, ...]
    dependency: str

    @property
    def ids(self) -> tuple[str, ...]:
        """What stands for the ids of its members."""
        return tuple(f"{self.name}_{index}" for index in self.indices) or (self.name,)

    def submission(self, asked: Resources, *, token: str, snapshot: str) -> Submission:
        """Return what is submitted of it."""
        return Submission(
            stage=self.stage,
            token=token,
            snapshot=snapshot,
            members=tuple(part.member for part in self.parts),
            indices=self.indices,
            max_idle_attempts=asked.max_idle_attempts,
        )


def plan_jobs(
    parts: Sequence[Part],
    active: Mapping[str, Job],
    *,
    resources: Callable[[str], Resources],
    folder: Path,
    longest: int,
) -> list[PlannedJob]:
    """Return the jobs of every part that is neither complete nor in the queue, in the order of submission.

    Args:
        parts: The plan, parents first.
        active: The jobs of members that wait or run already, by the member's name.
        resources: What a stage's members ask for.
        folder: The sweep's ``launch`` folder. What was submitted from there counts as running at once.
        longest: The longest array.
    """
    ids = {name: job.id for name, job in active.items()}
    turns = _Turns(parts, active, resources, folder)
    planned: list[PlannedJob] = []
    for stage in STAGES:
        own = [part for part in parts if part.stage == stage and not part.complete]
        todo = [part for part in own if part.member.name not in ids]
        while todo:
            # Parts of a set wait for each other.
            names = {part.member.name for part in todo}
            ready = [part for part in todo if not names.intersection(part.parents)]
            for group in group_by_dependency(ready, ids, longest):
                name = f"JOB{len(planned) + 1}"
                asked = resources(stage)
                before = turns.take(name, len(group.parts), asked.array_parallelism)
                # What waits for parts of the sweep waits with them for the jobs of others.
                first = asked.after_words if before else ""
                dependency = _joined(group.dependency or first, before)
                one = PlannedJob(name, stage, tuple(group.parts), tuple(group.indices), dependency)
                planned.append(one)
                ids |= {part.member.name: job for part, job in zip(one.parts, one.ids, strict=True)}
            todo = [part for part in todo if part.member.name not in ids]
    return planned


class _Turns:
    """Who may run at once: arrays one after the other, where together they would be more than the limit.

    The limit of each array does not bound several of them, and one that waits for the end of another, good or
    bad, also waits while that is requeued.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        active: Mapping[str, Job],
        resources: Callable[[str], Resources],
        folder: Path,
    ) -> None:
        stages = {part.member.name: part.stage for part in parts}
        arrays: dict[str, list[str]] = {}
        for name, job in active.items():
            if job.folder == folder and name in stages:
                arrays.setdefault(job.array, []).append(stages[name])
        self._before: list[str] = []
        self._now: list[str] = list(arrays)
        self._full = sum(
            (_share(len(own), resources(own[0]).array_parallelism) for own in arrays.values()), Fraction()
        )

    def take(self, name: str, members: int, at_once: int) -> list[str]:
        """Return the jobs that have to end before an array of so many members begins."""
        share = _share(members, at_once)
        if self._full + share > 1:
            self._before, self._now, self._full = self._now, [], Fraction()
        self._now.append(name)
        self._full += share
        return self._before


def _share(members: int, at_once: int) -> Fraction:
    return Fraction(min(members, at_once), at_once)


class Group(NamedTuple):
    """Members that go out together.

    Attributes:
        parts: The members.
        indices: Their numbers in the array, rising; empty for a single one.
        dependency: Slurm's words for what they wait for, or nothing.
    """

    parts: list[Part]
    indices: list[int]
    dependency: str


def group_by_dependency(todo: Sequence[Part], jobs: Mapping[str, str], longest: int) -> Iterator[Group]:
    """Split members that do not wait for each other into arrays, as few as can be.

    Args:
        todo: Members of one stage.
        jobs: Job ids of everything that waits, runs or is to be submitted before, by name.
        longest: The longest array.
    """
    alike: dict[tuple[str, ...], list[Part]] = {}
    of_array: dict[str, dict[int, list[Part]]] = {}
    for part in todo:
        waits = _waits(part, jobs)
        array, _, index = waits[0].partition("_") if len(waits) == 1 else ("", "", "")
        if index:
            of_array.setdefault(array, {}).setdefault(int(index), []).append(part)
        else:
            alike.setdefault(waits, []).append(part)
    for array, children in of_array.items():
        layers = max(map(len, children.values()))
        if len(children) <= layers:
            # Each array has the children of one element.
            alike |= {(f"{array}_{index}",): own for index, own in children.items()}
            continue
        for layer in range(layers):
            found = [(index, own[layer]) for index, own in sorted(children.items()) if layer < len(own)]
            for start in range(0, len(found), longest):
                chunk = found[start : start + longest]
                if len(chunk) > 1:
                    indices, group = [index for index, _ in chunk], [part for _, part in chunk]
                    yield Group(group, indices, f"aftercorr:{array}")
                else:
                    [(only, part)] = chunk
                    alike.setdefault((f"{array}_{only}",), []).append(part)
    for waits, together in alike.items():
        for start in range(0, len(together), longest):
            own = together[start : start + longest]
            yield Group(own, [*range(len(own))] if len(own) > 1 else [], _words(own[0].stage, waits))


def _waits(part: Part, jobs: Mapping[str, str]) -> tuple[str, ...]:
    ids = [jobs[name] for name in part.parents if name in jobs]
    if part.stage == "report":
        # It waits for whole arrays.
        ids = [job.partition("_")[0] for job in ids]
    return tuple(dict.fromkeys(ids))


def _words(stage: str, waits: tuple[str, ...]) -> str:
    if not waits:
        return ""
    return ":".join(["afterany" if stage == "report" else "afterok", *waits])


def _joined(dependency: str, before: Iterable[str]) -> str:
    """Return the words for what a job waits for, and for the end of others before it."""
    kind, *waits = dependency.split(":")
    if kind == "afterany":
        return ":".join(["afterany", *dict.fromkeys((*waits, *before))])
    return ",".join(filter(None, [dependency, ":".join(["afterany", *before]) if before else ""]))


def resolved(dependency: str, ids: Mapping[str, str]) -> str:
    """Return a planned job's dependency with the ids of what was submitted."""
    return re.sub(r"JOB\d+", lambda found: ids[found[0]], dependency)


def max_array_size() -> int:
    """Return how many members the cluster allows in an array."""
    shown = answer(["scontrol", "show", "config"]).stdout
    limits = re.findall(r"(?:MaxArraySize\s*=\s*|\bmax_array_tasks=)(\d+)", shown)
    # Where arrays are switched off, every member is a job of its own.
    return max(1, min(map(int, limits), default=_DEFAULT_ARRAY_SIZE))
