"""The records of a job's attempts: a folder each, JOB-NNN, beside the run or sweep.

    open.json      when it began, where, and at which step
    restarts.jsonl each restart of its ranks inside the allocation: why, at which step, the nodes at fault
    stalled.json   while ranks give no sign of life: which, where and since when
    close.json     what became of it and why, and how the ranks at fault ended

One process writes them, the coordinator of the job, and only when something happens.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nml.files import append_json_line, fsync_folder, is_full, json_bytes, write_bytes, write_json
from nml.layout import newest_step
from nml.untrusted import check_object, parse_json, read_file, read_object
from slurm.members import Member, own_attempt, own_job
from slurm.words import say

OPEN, RESTARTS, STALLED, CLOSE = "open.json", "restarts.jsonl", "stalled.json", "close.json"
# A variable of the batch script, which starts before Python and its imports do.
BEGAN = "NML_JOB_BEGAN"
_RESERVE = "reserve"
# The record of an end has to fit on a disk that is full.
_RESERVE_BYTES = 32_768
# Newer than that, or nobody writes it any more.
STALE_SECONDS = 30.0


class Attempt:
    """The records of this attempt of the running job.

    Args:
        member: What the job runs.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.folder = Path(member.record) / own_attempt()
        self._stalled: dict[str, Any] = {}
        self._stalled_at = 0.0

    @property
    def step(self) -> int:
        """The newest checkpoint."""
        return newest_step(Path(self.member.progress).parent) if self.member.progress else 0

    def open(self, node: str, *, spare: int = 0) -> None:
        """Note that it begins, on how many nodes, and how many of them stand by."""
        began = {"job": own_job(), "attempt": own_attempt(), "node": node, "step": self.step}
        write_json(self.folder / OPEN, {**began, "had": _allocation(spare), "time": time.time()})
        write_bytes(self.folder / _RESERVE, bytes(_RESERVE_BYTES))

    def restart(self, reason: str, nodes: Iterable[str]) -> None:
        """Note that its ranks start again."""
        line = {"reason": reason, "nodes": list(nodes), "step": self.step, "time": time.time()}
        append_json_line(self.folder / RESTARTS, line)

    def stall(self, ranks: Mapping[int, tuple[str, float, str]]) -> None:
        """Note which ranks give no sign of life: node, seconds and what they did last; none: all do."""
        now = time.time()
        found = {str(rank): [node, round(now - quiet), doing] for rank, (node, quiet, doing) in ranks.items()}
        if found.keys() == self._stalled.keys() and (not found or now - self._stalled_at < STALE_SECONDS / 2):
            return
        self._stalled, self._stalled_at = found, now
        # It is told once more in the reason of what follows.
        with contextlib.suppress(OSError):
            if found:
                write_json(self.folder / STALLED, {"ranks": found, "time": now})
            else:
                (self.folder / STALLED).unlink(missing_ok=True)

    def close(self, outcome: str, reason: str, status: int, ranks: Iterable[tuple[Any, ...]] = ()) -> None:
        """Note what became of it, also on a full disk."""
        ended = {"outcome": outcome, "reason": reason, "status": status, "step": self.step}
        told = [list(one) for one in ranks]
        content = {**ended, "ranks": told, "time": time.time()}
        say(f"{self.member.name}: attempt {own_attempt()}: {outcome}: {reason}")
        try:
            write_json(self.folder / CLOSE, content)
        except OSError as error:
            if not is_full(error):
                raise
            # The first one is the cause.
            while len(json_bytes(content)) > _RESERVE_BYTES and told:
                told.pop()
            # A second record finds its room in the first one.
            room = next(file for file in (self.folder / _RESERVE, self.folder / CLOSE) if file.exists())
            _write_in_place(room, json_bytes(content).ljust(_RESERVE_BYTES))
            room.replace(self.folder / CLOSE)
            fsync_folder(self.folder)
        if outcome != "requeue":
            (self.folder / _RESERVE).unlink(missing_ok=True)

    def idle_starts(self) -> int:
        """Return how many starts of this job's ranks in a row, this one too, found the same checkpoint."""
        count, step = 0, self.step
        for one in reversed(starts(Path(self.member.record), own_job())):
            if one["step"] != step:
                break
            count += 1
        return count

    def failures(self) -> dict[str, int]:
        """Return how often each node has failed in this job."""
        return Counter(
            node for one in starts(Path(self.member.record), own_job()) for node in one.get("nodes", ())
        )


def starts(record: Path, job: str) -> list[dict[str, Any]]:
    """Return every start of a job's ranks in their order: the openings of its attempts, and its restarts."""
    found: list[dict[str, Any]] = []
    for folder in sorted(record.glob(f"{job}-*"), key=attempt_number):
        with contextlib.suppress(OSError, ValueError):
            found.append(read_object(folder / OPEN, step=int))
            for line in read_file(folder / RESTARTS).splitlines():
                found.append(check_object(parse_json(line), step=int))
    return found


def newest_attempt(record: Path, job: str) -> Path | None:
    """Return the folder of a job's newest attempt, None where it has none."""
    return max(record.glob(f"{job}-*"), key=attempt_number, default=None)


def attempt_number(folder: Path) -> int:
    """Return which attempt of its job a folder is of: clocks of nodes differ, and may be set."""
    number = re.search(r"\d+$", folder.name)
    return int(number[0]) if number else -1


def _allocation(spare: int) -> dict[str, Any]:
    """Return what the running job has of the cluster, and since when by the clock of its first node."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    # `72(x2),36` is two nodes of 72 and one of 36.
    each = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return {
        "nodes": nodes,
        "cores": sum(int(cores) * int(times or 1) for cores, times in each),
        "spare": spare,
        "gpus": nodes * int(os.environ.get("SLURM_GPUS_ON_NODE") or 0),
        "began": float(os.environ.get(BEGAN) or time.time()),
    }


def _write_in_place(file: Path, data: bytes) -> None:
    with file.open("r+b") as reserved:
        reserved.write(data)
        reserved.flush()
        os.fsync(reserved.fileno())
