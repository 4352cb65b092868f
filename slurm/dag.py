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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from slurm import executor
from slurm.cluster import STAGES, Resources
from slurm.journal import Journal
from slurm.members import Submission
from slurm.plan import Part

_DEFAULT_ARRAY_SIZE = 1001


def submit_parts(
    parts: Sequence[Part],
    active: Mapping[str, str],
    *,
    resources: Callable[[str], Resources],
    snapshot: Path,
    folder: Path,
    journal: Journal,
) -> dict[str, str]:
    """Submit every part that is neither complete nor in the queue.

    Args:
        parts: The plan, parents first.
        active: Job ids of members that wait or run already, by name.
        resources: What a stage's members ask for.
        snapshot: The code they run.
        folder: Where submissions, pickles and logs go.
        journal: The sweep's journal.

    Returns:
        The job ids of what was submitted, by the member's name.

    Raises:
        UserError: If Slurm refuses a part; all that this call had submitted is then cancelled.
    """
    submitted: dict[str, str] = {}
    limit = max_array_size()
    try:
        for stage in STAGES:
            todo = [
                part
                for part in parts
                if part.stage == stage and not part.complete and part.member.name not in active
            ]
            for group, dependency in group_by_dependency(todo, {**active, **submitted}, limit):
                token = f"nml-{secrets.token_hex(6)}"
                submission = Submission(
                    stage=stage,
                    token=token,
                    snapshot=str(snapshot),
                    members=tuple(part.member for part in group),
                    max_idle_attempts=resources(stage).max_idle_attempts,
                )
                ids = executor.submit(
                    submission,
                    resources(stage),
                    folder / f"{token}.json",
                    journal=journal,
                    dependency=dependency,
                )
                submitted |= {part.member.name: job for part, job in zip(group, ids, strict=True)}
    except BaseException:
        # Half a sweep in the queue would be found by nobody.
        cancel(submitted.values())
        raise
    return submitted


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
        segment = list(members)
        elements = [waits[part.member.name] for part in segment]
        aligned = [(f"{array}_{index}",) for index in range(sizes[array])]
        if array and len(segment) > 1 and elements == aligned and len(segment) <= limit:
            yield segment, f"aftercorr:{array}"
            continue
        groups: dict[tuple[str, ...], list[Part]] = {}
        for part in segment:
            groups.setdefault(waits[part.member.name], []).append(part)
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
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return int(found[1]) if found else _DEFAULT_ARRAY_SIZE


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs."""
    ids = list(jobs)
    if ids:
        subprocess.run(["scancel", *ids], capture_output=True, timeout=120)
