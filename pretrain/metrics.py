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

# Time that trains nothing, by cause. ``redone`` is work since the last checkpoint before a crash,
# ``down`` the time between attempts.
CAUSES = ("startup", "data_wait", "validation", "checkpoint", "redone", "down")


class Ledger:
    """Seconds since the run began, divided into useful ones and lost ones by cause."""

    def __init__(self) -> None:
        self.useful = 0.0
        self.lost = dict.fromkeys(CAUSES, 0.0)

    @contextmanager
    def losing(self, cause: str) -> Iterator[None]:
        """Book the time inside the block as lost."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.lost[cause] += time.perf_counter() - start

    @property
    def goodput(self) -> float:
        """Useful time over all time, 0 to 1."""
        wall = self.useful + sum(self.lost.values())
        return self.useful / wall if wall else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the record that every line carries."""
        return {
            "goodput": round(self.goodput, 4),
            "useful_s": round(self.useful, 3),
            "lost_s": {cause: round(seconds, 3) for cause, seconds in self.lost.items()},
        }

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
        self.lost["down"] += max(0.0, time.time() - last["time"])


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
