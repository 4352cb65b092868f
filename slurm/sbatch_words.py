"""Words of sbatch as people write them: time limits, GPUs, jobs to wait for, further options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nml.errors import UserError

# Minutes, minutes:seconds, hours:minutes:seconds; after days: hours, hours:minutes, hours:minutes:seconds.
_TIME = re.compile(r"(?:(?P<days>[0-9]+)-)?(?P<parts>[0-9]+(?::[0-9]+){0,2})")
# `4`, or of one kind: `a100:4`.
_GPUS = re.compile(r"(?:(?P<kind>[A-Za-z][\w.-]*):)?(?P<count>[0-9]+)")
_JOB = r"[0-9]+(?:_[0-9]+)?"
_AFTER = re.compile(rf"(?:(?P<how>afterok|afterany):)?(?P<jobs>{_JOB}(?:,{_JOB})*)")


def parse_minutes(text: str) -> int:
    """Return a time limit in minutes, rounded up, as sbatch reads it.

    That is ``MINUTES``, ``MINUTES:SECONDS``, ``HOURS:MINUTES:SECONDS``, ``DAYS-HOURS``,
    ``DAYS-HOURS:MINUTES`` or ``DAYS-HOURS:MINUTES:SECONDS``: two parts are minutes and seconds, but
    hours and minutes after days.

    Raises:
        UserError: If the text is no time limit.
    """
    match = _TIME.fullmatch(str(text).strip())
    if match:
        parts = [int(part) for part in match["parts"].split(":")]
        if match["days"] is None and len(parts) < 3:
            parts.insert(0, 0)
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        total = ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
        if total > 0:
            return -(-total // 60)
    raise UserError(
        f"--time {text}: not a time limit",
        possible="minutes (90), minutes:seconds, HOURS:MINUTES:SECONDS (12:00:00), DAYS-HOURS (2-00), "
        "DAYS-HOURS:MINUTES, DAYS-HOURS:MINUTES:SECONDS",
    )


def parse_gpus(text: object) -> dict[str, Any]:
    """Return the fields of ``4`` or ``a100:4`` GPUs a node.

    Raises:
        UserError: If it is neither.
    """
    match = _GPUS.fullmatch(str(text).strip())
    if not match:
        raise UserError(f"--gpus-per-node {text}: not a possible value", possible="4, or of a kind: a100:4")
    return {"gpus_per_node": int(match["count"])} | ({"gpu_type": match["kind"]} if match["kind"] else {})


def parse_options(words: Sequence[str]) -> dict[str, str | bool]:
    """Return options of sbatch as ``KEY=VALUE`` gives them, or ``KEY`` one that takes no value.

    Raises:
        UserError: If one has no name.
    """
    found: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not name:
            raise UserError(f"--sbatch {word}: it names no option", possible="KEY=VALUE, or KEY")
        found[name] = value if equals else True
    return found


def parse_after(text: str) -> str:
    """Return Slurm's words for ``12``, ``12,13`` or ``afterany:12``.

    Raises:
        UserError: If it names no jobs.
    """
    match = _AFTER.fullmatch(text)
    if not match:
        raise UserError(f"--after {text}: no job ids", possible="12, or 12,13, or afterany:12")
    return f"{match['how'] or 'afterok'}:{match['jobs'].replace(',', ':')}"
