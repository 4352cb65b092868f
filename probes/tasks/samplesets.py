"""Samples held by their bytes, and selections and shifts of other samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.hashing import hash_value, rank_by_hash
from probes.samples import Content, SampleSet
from probes.tasks.decoding import decode_image


class ImageBytes:
    """Encoded images in memory or in a memory map.

    Args:
        keys: N names.
        labels: Classes, int64 [N].
        data: N encoded images; anything that indexes to bytes.
    """

    def __init__(self, keys: Sequence[str], labels: npt.NDArray[np.int64], data: Sequence[bytes]) -> None:
        self.keys = keys
        self.labels = labels
        self._data = data
        digest = hashlib.sha256()
        for item in data:
            digest.update(len(item).to_bytes(8, "little"))
            digest.update(item)
        self.fingerprint = digest.hexdigest()

    def read(self, index: int) -> Content:
        """Return the decoded image."""
        return decode_image(self._data[index], self.keys[index])


class Texts:
    """Texts, or pairs of them, in memory.

    Args:
        keys: N names.
        labels: Classes, int64 [N].
        texts: N texts or tuples of texts.
    """

    def __init__(
        self,
        keys: Sequence[str],
        labels: npt.NDArray[np.int64],
        texts: Sequence[str | tuple[str, ...]],
    ) -> None:
        self.keys = keys
        self.labels = labels
        self._texts = texts
        self.fingerprint = hash_value([text if isinstance(text, str) else list(text) for text in texts])

    def read(self, index: int) -> Content:
        """Return the text or the tuple of texts."""
        return self._texts[index]


class Selected:
    """Some of other samples.

    Args:
        base: The samples to choose from.
        rows: Positions to keep, int64.
    """

    def __init__(self, base: SampleSet, rows: npt.NDArray[np.int64]) -> None:
        self.keys = [base.keys[row] for row in rows]
        self.labels = base.labels[rows]
        self.fingerprint = hash_value([base.fingerprint, "selected", rows.tolist()])
        self._base = base
        self._rows = rows

    def read(self, index: int) -> Content:
        """Return the sample of the base."""
        return self._base.read(int(self._rows[index]))


class Shifted:
    """Other samples, each changed by a pure function of (sample, key).

    Args:
        base: The samples as they are.
        name: Name of the shift.
        version: Raised whenever the function's outcome changes.
        shift: The function.
    """

    def __init__(self, base: SampleSet, name: str, version: int, shift: Callable[[Any, str], Any]) -> None:
        self.keys = base.keys
        self.labels = base.labels
        self.fingerprint = hash_value([base.fingerprint, "shifted", name, version])
        self._base = base
        self._shift = shift

    def read(self, index: int) -> Content:
        """Return the shifted sample."""
        shifted: Content = self._shift(self._base.read(index), self.keys[index])
        return shifted


def limited(samples: SampleSet, limit: int | None) -> SampleSet:
    """Return ``limit`` samples chosen by the hash of their keys; all of them without a limit."""
    if limit is None or limit >= len(samples.keys):
        return samples
    return Selected(samples, np.sort(rank_by_hash(samples.keys, "nml-limit/1")[:limit]))
