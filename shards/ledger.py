"""A ledger of skipped samples, and the budget that bounds them.

A skipped sample shifts the noise that training really sees; with its key on file, the realised
noise stays recomputable. One line of JSON is appended a skip, atomically, so that all workers and
ranks on a machine share one ledger and one budget.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from nml.errors import UserError
from nml.untrusted import parse_json
from shards.reader import DamagedSample

DEFAULT_SKIP_BUDGET = 1e-4


class SkipLedger:
    """Counts distinct skipped samples, in a file if there is one, else in this process.

    Args:
        path: The ledger, JSON lines of key, shard and reason; None keeps it in memory.
        limit: Distinct samples that may be skipped before reading fails.
    """

    def __init__(self, path: Path | None, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._seen: set[str] = set()

    def record(self, damage: DamagedSample) -> None:
        """Write a skip down.

        Raises:
            UserError: If it is one more than the budget allows.
        """
        if damage.key in self._seen:
            return
        if self._path is not None:
            self._seen |= {entry["key"] for entry in read_ledger(self._path)}
        if damage.key not in self._seen:
            self._append(damage)
            self._seen.add(damage.key)
        if len(self._seen) > self._limit:
            where = f"; skips so far: {self._path}" if self._path else ""
            raise UserError(
                f"{damage.what}; {len(self._seen)} samples cannot be read, and the budget is "
                f"{self._limit}{where}",
                mend="mend the set (python -m shards.verify tells what is wrong), or raise skip_budget "
                "(--recipe.data.skip_budget in pre-training)",
            ) from damage

    def _append(self, damage: DamagedSample) -> None:
        if self._path is None:
            return
        line = json.dumps({"key": damage.key, "shard": damage.shard, "reason": damage.reason}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # One write to a file opened for appending is not torn apart by other writers.
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read_ledger(path: Path) -> list[dict[str, str]]:
    """Return the entries of a ledger, key, shard and reason each; none if it does not exist."""
    if not path.exists():
        return []
    return [parse_json(line) for line in path.read_text().splitlines() if line.endswith("}")]
