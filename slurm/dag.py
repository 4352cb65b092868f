"""A sweep's parts as Slurm jobs: arrays that wait for each other, nothing kept alive outside.

Members of a stage ask for the same, so they go out as arrays. Where each waits for the element of
the same number in one other array, Slurm's ``aftercorr`` lets it start as soon as that one is done;
what does not fit is grouped by what it waits for. The report waits for the probes' end, good or bad:
it shows what there is.
"""

from __future__ import annotations

import itertools
import re
import secrets
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from slurm import executor
from slurm.cluster import STAGES, Resources
from slurm.controller import cancel
from slurm.journal import Journal
from slurm.members import Submission
from slurm.plan import Part
from slurm.registry import Taken

_DEFAULT_ARRAY_SIZE = 1001


class Submitted(NamedTuple):
    """What became of a sweep's parts.

    Attributes:
        jobs: Job ids of what was submitted, by the member's name.
        full: Why there is not more of it, where the user may have no more jobs in the queue.
        taken: Whether somebody else has claimed a part of the rest meanwhile.
    """

    jobs: dict[str, str]
    full: str = ""
    taken: bool = False


def submit_parts(
    parts: Sequence[Part],
    active: Mapping[str, str],
    *,
    resources: Callable[[str], Resources],
    snapshot: Path,
    folder: Path,
    journal: Journal,
) -> Submitted:
    """Submit every part that is neither complete nor in the queue, or as many as the queue takes.

    Args:
        parts: The plan, parents first.
        active: Job ids of members that wait or run already, by name.
        resources: What a stage's members ask for.
        snapshot: The code they run.
        folder: Where submissions, pickles and logs go.
        journal: The sweep's journal.

    Raises:
        UserError: If Slurm refuses a part; all that this call had submitted is then cancelled.
    """
    submitted: dict[str, str] = {}
    limit = max_array_size()

    def submit(group: Sequence[Part], dependency: str) -> None:
        asked = resources(group[0].stage)
        token = f"nml-{secrets.token_hex(6)}"
        submission = Submission(
            stage=group[0].stage,
            token=token,
            snapshot=str(snapshot),
            members=tuple(part.member for part in group),
            max_idle_attempts=asked.max_idle_attempts,
        )
        file = folder / f"{token}.json"
        try:
            ids = executor.submit(submission, asked, file, journal=journal, dependency=dependency)
        except executor.QueueFull:
            if len(group) == 1:
                raise
            # There may be room for a part of the array.
            half = len(group) // 2
            submit_all(group[:half])
            submit_all(group[half:])
        else:
            submitted.update(zip((part.member.name for part in group), ids, strict=True))

    def submit_all(todo: Sequence[Part]) -> None:
        for group, dependency in group_by_dependency(todo, {**active, **submitted}, limit):
            submit(group, dependency)

    try:
        for stage in STAGES:
            submit_all(
                [
                    part
                    for part in parts
                    if part.stage == stage and not part.complete and part.member.name not in active
                ]
            )
    except Taken:
        return Submitted(submitted, taken=True)
    except executor.QueueFull as full:
        if not submitted:
            raise
        return Submitted(submitted, full.what)
    except BaseException:
        # Half a sweep in the queue would be found by nobody.
        cancel(submitted.values())
        raise
    return Submitted(submitted)


def group_by_dependency(
    todo: Sequence[Part], jobs: Mapping[str, str], limit: int
) -> Iterator[tuple[list[Part], str]]:
    """Split a stage into arrays, each with the words for what it waits for.

    Args:
        todo: Members of one stage, in order.
        jobs: Job ids of everything that waits, runs or was just submitted, by name.
        limit: The longest array.
    """
    sizes = Counter(job.partition("_")[0] for job in jobs.values())
    waits = {part.member.name: _waits(part, jobs) for part in todo}

    def parent_array(part: Part) -> str:
        found = waits[part.member.name]
        return found[0].partition("_")[0] if len(found) == 1 else ""

    for array, members in itertools.groupby(todo, key=parent_array):
        size = sizes[array]
        aligned = [(f"{array}_{index}",) for index in range(size)]
        groups: dict[tuple[str, ...], list[Part]] = {}
        segment = list(members)
        while segment:
            elements = [waits[part.member.name] for part in segment[:size]]
            if array and 1 < size <= limit and elements == aligned:
                yield segment[:size], f"aftercorr:{array}"
                segment = segment[size:]
                continue
            groups.setdefault(waits[segment[0].member.name], []).append(segment.pop(0))
        for wait, group in groups.items():
            for start in range(0, len(group), limit):
                yield group[start : start + limit], _words(group[0].stage, wait)


def _waits(part: Part, jobs: Mapping[str, str]) -> tuple[str, ...]:
    ids = [jobs[name] for name in part.parents if name in jobs]
    if part.stage == "report":
        # It waits for whole arrays.
        ids = [job.partition("_")[0] for job in ids]
    return tuple(dict.fromkeys(ids))


def _words(stage: str, wait: tuple[str, ...]) -> str:
    if not wait:
        return ""
    return ":".join(["afterany" if stage == "report" else "afterok", *wait])


def max_array_size() -> int:
    """Return how many members the cluster allows in an array."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    limits = re.findall(r"(?:MaxArraySize\s*=\s*|\bmax_array_tasks=)(\d+)", shown)
    # Where arrays are switched off, every member is a job of its own.
    return max(1, min(map(int, limits), default=_DEFAULT_ARRAY_SIZE))
