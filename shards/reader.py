"""Read a sample's image by number: offset and size from the index, hash checked, nothing unpickled.

A sample that cannot be read and is skipped shifts the noise that training really sees; with its key in a
ledger, the realised noise stays recomputable. One line of JSON is appended a skip, atomically, so that all
workers and ranks on a machine share one ledger and one budget.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import make_folder
from nml.untrusted import parse_json
from shards.index_table import Place
from shards.open_files import OpenFiles
from shards.shardset import ShardSet

OPEN_SHARDS = 256
DEFAULT_SKIP_BUDGET = 1e-4


class DamagedSample(UserError):
    """A sample whose bytes cannot be trusted.

    Attributes:
        key: The sample's key.
        shard: File name of its shard.
        reason: What is wrong, in words.
    """

    def __init__(self, key: str, shard: str, reason: str) -> None:
        self.key = key
        self.shard = shard
        self.reason = reason
        super().__init__(
            f"sample {key} of {shard}: {reason}",
            mend="restore the shard (python -m shards.verify --decode tells what else is wrong), "
            "or leave it out for good by writing the set anew without it",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # DataLoader workers send errors to the training process.
        return DamagedSample, (self.key, self.shard, self.reason)


class ShardReader:
    """Reads images of a set; safe to use from several threads, and in forked or spawned workers.

    Args:
        shard_set: The set.
        verify: Check each image's SHA-256 against the index (60 microseconds for 100 kB).
    """

    def __init__(self, shard_set: ShardSet, *, verify: bool = True) -> None:
        self._set = shard_set
        self._verify = verify
        self._files = OpenFiles(OPEN_SHARDS, shard_set.storage.local)

    def image(self, sample: int) -> tuple[Place, bytes]:
        """Return where a sample lies and its encoded image.

        Raises:
            DamagedSample: If the shard ends early, or the bytes do not hash to what the index says.
        """
        place = self._set.index.place(sample)
        shard = self._set.info.shards[place.shard]
        try:
            data = self._files[shard.name].read(place.size, place.offset)
        except OSError as error:
            raise DamagedSample(place.key, shard.name, str(error.strerror)) from error
        if len(data) != place.size:
            raise DamagedSample(
                place.key, shard.name, f"the shard ends after {len(data)} of {place.size} bytes"
            )
        if self._verify and hashlib.sha256(data).digest() != place.sha256:
            raise DamagedSample(place.key, shard.name, "the image does not match its SHA-256 in the index")
        return place, data


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
        make_folder(self._path.parent)
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
