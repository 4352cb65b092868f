"""When a part held nodes of the cluster, or this machine, and how many: a span an attempt.

Slurm's accounting knows it to the second, where a cluster has it. Elsewhere the records of the attempts tell.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nml.untrusted import read_object
from slurm.attempt import CLOSE, OPEN
from slurm.controller import answer
from slurm.local_attempt import is_running
from slurm.states import is_below
from slurm.verdict import DONE, FAILED, REQUEUE

RUNNING = "running"
_ANSWER_SECONDS = 120
# A job's number is given again some day; before its submission, by another clock, it was another's.
_SKEW_SECONDS = 600.0
_OUTCOMES = {
    "COMPLETED": DONE,
    **dict.fromkeys(("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING"), RUNNING),
    **dict.fromkeys(("REQUEUED", "PREEMPTED", "NODE_FAIL", "TIMEOUT"), REQUEUE),
}


class Span(NamedTuple):
    """What one attempt of a part had, and for how long.

    Attributes:
        job: Its job id, ``local`` on this machine.
        began: When, in seconds since 1970.
        seconds: For how long.
        nodes, cores, gpus: Of all of it.
        outcome: ``done``, ``failed``, ``requeue`` for what goes on or starts over, or ``running``.
        spare: How many of the nodes stand by; Slurm's accounting does not know.
        closed: Whether its end is known, or that it runs; otherwise the last sign of it counts.
    """

    job: str
    began: float
    seconds: float
    nodes: int
    cores: int
    gpus: int
    outcome: str
    spare: int = 0
    closed: bool = True

    @property
    def ended(self) -> float:
        """When it ended, in seconds since 1970."""
        return self.began + self.seconds


def recorded_spans(record: Path, running: Iterable[str], signs: Iterable[Path] = ()) -> list[Span]:
    """Return what the records of a part's attempts tell, oldest first; those that do not read are left out.

    Args:
        record: Folder of the records.
        running: Jobs that Slurm runs now.
        signs: Files that a part writes to while it runs.
    """
    opened: list[tuple[Path, dict[str, Any]]] = []
    for file in record.glob(f"*-*/{OPEN}"):
        with contextlib.suppress(OSError, ValueError):
            opened.append((file.parent, read_object(file, job=str, time=int | float)))
    opened.sort(key=lambda one: float(one[1]["time"]))
    newest = {told["job"]: folder for folder, told in opened}
    found = []
    for index, (folder, told) in enumerate(opened):
        last = folder == newest[told["job"]]
        if (end := _end(folder)) is not None:
            outcome, ended = end
        elif last and (told["job"] in running or is_running(folder)):
            outcome, ended = RUNNING, time.time()
        else:
            # Killed with all that could have told. It was alive when it wrote last, and over before the next.
            outcome = FAILED if last else REQUEUE
            ended = _last_sign([*folder.iterdir(), *(signs if folder == opened[-1][0] else ())])
            if index + 1 < len(opened):
                ended = min(ended, float(opened[index + 1][1]["time"]))
        had = told["had"] if isinstance(told.get("had"), dict) else {}
        began = _number(had.get("began")) or float(told["time"])
        nodes, cores, gpus, spare = (
            int(_number(had.get(name))) for name in ("nodes", "cores", "gpus", "spare")
        )
        seconds, known = max(0.0, ended - began), end is not None or outcome == RUNNING
        found.append(Span(told["job"], began, seconds, max(1, nodes), cores, gpus, outcome, spare, known))
    return found


def _end(folder: Path) -> tuple[str, float] | None:
    try:
        told = read_object(folder / CLOSE, outcome=str, time=int | float)
    except (OSError, ValueError):
        return None
    return told["outcome"], float(told["time"])


def _last_sign(files: Iterable[Path]) -> float:
    times = [0.0]
    for file in files:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0


def accounted_spans(jobs: Mapping[str, Path], since: float) -> dict[str, list[Span]]:
    """Return what Slurm's accounting tells of jobs, requeued attempts included; nothing where there is none.

    Args:
        jobs: Job ids, ``12`` or ``12_3``, each with the folder that it was launched from: a job works in its
            snapshot, which lies there, and one of that number that does not is another one.
        since: When the first of them was submitted, in seconds since 1970.
    """
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    start = datetime.datetime.fromtimestamp(max(0.0, since - _SKEW_SECONDS)).strftime("%Y-%m-%dT%H:%M:%S")
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", f"--starttime={start}"]
    form = "--format=JobID,State,Start,ElapsedRaw,AllocNodes,AllocCPUS,AllocTRES,WorkDir"
    argv += [form, "--jobs", ",".join(arrays)]
    listed = answer(argv, seconds=_ANSWER_SECONDS, more={"SLURM_TIME_FORMAT": "standard"}).stdout
    found: dict[str, list[Span]] = {}
    for line in listed.splitlines():
        span, place = read_span(line), line.split("|", 7)[-1]
        if span is not None and span.job in jobs and is_below(place, jobs[span.job]):
            found.setdefault(span.job, []).append(span)
    for spans in found.values():
        spans.sort(key=lambda span: span.began)
    return found


def read_span(line: str) -> Span | None:
    """Read a line of sacct; None for what has not begun, or is no line of a job."""
    fields = line.split("|", 7)
    if len(fields) != 8 or not all(one.isdecimal() for one in fields[3:6]):
        return None
    job, state, start, seconds, nodes, cores, tres, _ = fields
    try:
        began = datetime.datetime.fromisoformat(start).timestamp()
    except ValueError:
        # `Unknown`, or `None`: it waits.
        return None
    # `CANCELLED by 0` names the user.
    outcome = _OUTCOMES.get((state.split() or [""])[0], FAILED)
    return Span(job, began, float(seconds), int(nodes), int(cores), gpus_of(tres), outcome)


def gpus_of(tres: str) -> int:
    """Return how many GPUs a list of resources names: ``cpu=2,gres/gpu:a100=4,gres/gpu=4,node=1``."""
    counts = re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres)
    # The kinds are told beside their sum, or without it.
    sums = [int(count) for kind, count in counts if not kind]
    return sums[0] if sums else sum(int(count) for _, count in counts)
