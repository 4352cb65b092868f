"""Read a sample's image by number: offset and size from the index, hash checked, nothing unpickled."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import Any

from nml.errors import UserError
from shards.index_table import Place
from shards.shardset import ShardSet

OPEN_SHARDS = 256


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
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def image(self, sample: int) -> tuple[Place, bytes]:
        """Return where a sample lies and its encoded image.

        Raises:
            DamagedSample: If the shard ends early, or the bytes do not hash to what the index says.
        """
        place = self._set.index.place(sample)
        shard = self._set.info.shards[place.shard]
        try:
            data = os.pread(self._descriptor(place.shard, shard.name), place.size, place.offset)
        except OSError as error:
            raise DamagedSample(place.key, shard.name, str(error.strerror)) from error
        if len(data) != place.size:
            raise DamagedSample(
                place.key, shard.name, f"the shard ends after {len(data)} of {place.size} bytes"
            )
        if self._verify and hashlib.sha256(data).digest() != place.sha256:
            raise DamagedSample(place.key, shard.name, "the image does not match its SHA-256 in the index")
        return place, data

    def _descriptor(self, number: int, name: str) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            path = self._set.storage.local(name)
            descriptor = self._open[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor
