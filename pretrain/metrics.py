"""metrics.jsonl: one line a step, and what became of the time.

Lines after the checkpoint that a run resumes from are taken back, since those steps are done again;
the time they took is not forgotten but booked as lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nml.files import write_bytes

# Time that trains nothing, by cause. ``left_out`` are steps that were not finite, ``redone`` is work since
# the last checkpoint before a crash, ``down`` the time between attempts, ``other`` what nobody claims, such
# as writing these lines.
CAUSES = ("startup", "data_wait", "validation", "checkpoint", "left_out", "redone", "down", "other")


class Ledger:
    """Seconds since the run began, divided into useful ones and lost ones by cause; none is left out.

    Args:
        started: When this attempt began, by time.perf_counter().
    """

    def __init__(self, started: float) -> None:
        self.useful = 0.0
        self.lost = dict.fromkeys(CAUSES, 0.0)
        self._started = started
        self._before = 0.0

    @contextmanager
    def losing(self, cause: str, *, since_start: bool = False) -> Iterator[None]:
        """Book the time inside the block as lost, or all since the attempt began."""
        start = self._started if since_start else time.perf_counter()
        try:
            yield
        finally:
            self.lost[cause] += time.perf_counter() - start

    @property
    def wall(self) -> float:
        """Seconds since the run began, those between its attempts included."""
        return self._before + time.perf_counter() - self._started

    @property
    def goodput(self) -> float:
        """Useful time over all time, 0 to 1."""
        return self.useful / self.wall

    def as_json(self) -> dict[str, Any]:
        """Return the record that every line carries."""
        wall = self.wall
        claimed = sum(seconds for cause, seconds in self.lost.items() if cause != "other")
        self.lost["other"] = max(0.0, wall - self.useful - claimed)
        return {
            "goodput": round(self.useful / wall, 4),
            "useful_s": round(self.useful, 3),
            "lost_s": {cause: round(seconds, 3) for cause, seconds in self.lost.items()},
        }

    def in_words(self) -> str:
        """Return goodput and the causes that cost a hundredth of the time or more, largest first."""
        books, wall = self.as_json(), self.wall
        causes = sorted(books["lost_s"].items(), key=lambda item: -item[1])
        named = [
            f"{cause.replace('_', ' ')} {seconds:.1f} s" for cause, seconds in causes if seconds > wall / 100
        ]
        return f"goodput {self.goodput:.2f}" + (f", lost to {', '.join(named)}" if named else "")

    def resume(self, kept: dict[str, Any] | None, last: dict[str, Any]) -> None:
        """Take over from earlier attempts.

        Args:
            kept: The last line at or before the checkpoint; None if there is none.
            last: The last line of all.
        """
        if kept is not None:
            self.useful = kept["useful_s"]
        self.lost.update(last["lost_s"])
        self.lost["redone"] += last["useful_s"] - self.useful
        # Until this attempt began: from there on its own time counts.
        began = time.time() - (time.perf_counter() - self._started)
        self.lost["down"] += max(0.0, began - last["time"])
        self._before = self.useful + sum(self.lost.values())


class Metrics:
    """The file of a run; only rank 0 has one.

    Args:
        path: The file.
        step: Steps done in the checkpoint that the run resumes from, 0 at the beginning.
        ledger: Filled with the times of earlier attempts.
    """

    def __init__(self, path: Path, step: int, ledger: Ledger) -> None:
        lines = read_metrics(path)
        kept = [line for line in lines if line["step"] <= step]
        if lines:
            ledger.resume(kept[-1] if kept else None, lines[-1])
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._ledger = ledger

    def write(self, event: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Append a line and return it."""
        line = {
            "event": event,
            "step": step,
            **values,
            **self._ledger.as_json(),
            "time": round(time.time(), 3),
        }
        self._file.write(json.dumps(line) + "\n")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; one that was cut short by a crash is left out."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
