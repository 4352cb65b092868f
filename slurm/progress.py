"""How far a run is, from what it writes: metrics.jsonl, config.yaml and DONE.json."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from nml import layout
from nml.untrusted import check_object, parse_json, read_yaml

# What a run's books call the time between its attempts.
DOWN = "down"
_TAIL_BYTES = 64_000
# Of steps and of seconds since 1970; a file of somebody else's may hold anything.
_LARGEST = 1e15


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: The last step in its metrics, 0 before the first.
        total: The step it ends with; None where it cannot be told.
        loss: The last loss; None where there is none.
        eta_seconds: What is left at the pace of late; None where it cannot be told.
        done: Whether it is complete.
    """

    step: int = 0
    total: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None
    done: bool = False


def read_progress(run: Path) -> Progress:
    """Return how far the run in a folder is."""
    lines = [line for line in _last_lines(run / layout.METRICS) if "step" in line]
    done = layout.is_done(run)
    if not lines:
        return Progress(done=done)
    last = lines[-1]
    losses = [line["loss"] for line in lines if "loss" in line]
    total = _total_steps(run, lines)
    eta = None if done or not total else _eta(lines, total)
    return Progress(int(last["step"]), total, losses[-1] if losses else None, eta, done)


def _total_steps(run: Path, lines: list[dict[str, float]]) -> int | None:
    """Return the step a run ends with: the steps of an epoch so far, times the epochs it is asked for."""
    try:
        epochs = read_yaml(run / layout.CONFIG)["recipe"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    paces = [line["step"] / line["epoch"] for line in lines if line.get("epoch")]
    total = paces[-1] * epochs if paces and isinstance(epochs, int) else math.inf
    return round(total) if math.isfinite(total) else None


def _eta(lines: list[dict[str, float]], total: int) -> float | None:
    """Return the seconds left at the usual pace: the pause before a requeued attempt is not usual."""
    timed = [line for line in lines if "time" in line]
    paces = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(timed)
        if after["step"] > before["step"]
    ]
    return max(0.0, (total - timed[-1]["step"]) * statistics.median(paces)) if paces else None


def read_books(run: Path) -> dict[str, float]:
    """Return the seconds of a run, ``useful`` or by the cause of their loss; empty where it tells of none."""
    for fields in reversed(_last_objects(run / layout.METRICS)):
        lost = fields.get("lost_s")
        if isinstance(lost, dict):
            told = {"useful": fields.get("useful_s"), **lost}
            return {
                str(name): float(value)
                for name, value in told.items()
                if isinstance(value, int | float) and 0 <= value <= _LARGEST
            }
    return {}


def _last_lines(file: Path) -> list[dict[str, float]]:
    """Return the numbers in the last whole lines of a JSON-lines file."""
    return [
        {name: value for name, value in fields.items() if _is_number(name, value)}
        for fields in _last_objects(file)
    ]


def _last_objects(file: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of a JSON-lines file; a line being written is left out."""
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        start = max(0, file.stat().st_size - _TAIL_BYTES)
        stream.seek(start)
        whole, _, _ = stream.read().rpartition(b"\n")
    found = []
    for line in whole.splitlines()[1 if start else 0 :]:
        try:
            found.append(check_object(parse_json(line)))
        except ValueError:
            continue
    return found


def _is_number(name: str, value: Any) -> bool:
    """Whether a value can be reckoned with, or is a loss, which is shown whatever it has become."""
    return isinstance(value, int | float) and (name == "loss" or abs(value) <= _LARGEST)


def describe_seconds(seconds: float | None) -> str:
    """Return a duration as people say it: ``42s``, ``3m10s``, ``5h02m``, ``2d03h``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
