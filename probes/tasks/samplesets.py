"""Samples held by their bytes, and selections and shifts of other samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.images import MAX_PIXELS, BadImage, bad_image, eight_bits, open_image
from nml.stored_images import StoredImages
from probes.hashing import hash_value, rank_by_hash
from probes.samples import Content, Labels, SampleSet
from probes.tasks.remembered import remembered_hash

# Images in memory at once while they are hashed.
HASH_BATCH = 256


@runtime_checkable
class Hashed(Protocol):
    """Samples that tell the hash of the bytes each of them is made of, without decoding it."""

    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of one sample's bytes. Safe to call from threads."""
        ...


class ImageBytes:
    """Encoded images, read and decoded when asked for.

    Args:
        keys: N names.
        labels: Their labels, see :data:`probes.samples.Labels`.
        data: N encoded images.
    """

    def __init__(self, keys: Sequence[str], labels: Labels, data: StoredImages) -> None:
        self.keys = keys
        self.labels = labels
        self._data = data
        self.fingerprint = remembered_hash(data.files, data.layout, self._hash)

    def read(self, index: int) -> Content:
        """Return the decoded image."""
        try:
            image = open_image(self._data[index], max_pixels=MAX_PIXELS)
            with bad_image():
                image.load()
                return eight_bits(image)
        except BadImage as error:
            raise UserError(
                f"image {self._data.name(index)} cannot be decoded: {error}",
                mend="repair it, or leave it out of the task",
            ) from error

    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of the encoded image."""
        return hashlib.sha256(self._data[index]).digest()

    def _hash(self) -> str:
        digest = hashlib.sha256()
        count = len(self._data)
        with (
            tqdm(
                total=count, unit="images", desc="hashing images", disable=not is_interactive(), leave=False
            ) as progress,
            # Files on a network answer one by one; several are asked at once.
            ThreadPoolExecutor(max_workers=8) as pool,
        ):
            for start in range(0, count, HASH_BATCH):
                batch = range(start, min(count, start + HASH_BATCH))
                for item in pool.map(self._data.__getitem__, batch):
                    digest.update(len(item).to_bytes(8, "little"))
                    digest.update(item)
                progress.update(len(batch))
        return digest.hexdigest()


class Texts:
    """Texts, or pairs of them, in memory.

    Args:
        keys: N names.
        labels: Their labels, see :data:`probes.samples.Labels`.
        texts: N texts or tuples of texts.
    """

    def __init__(
        self,
        keys: Sequence[str],
        labels: Labels,
        texts: Sequence[str | tuple[str, ...]],
    ) -> None:
        self.keys = keys
        self.labels = labels
        self._texts = texts
        self.fingerprint = hash_value([text if isinstance(text, str) else list(text) for text in texts])

    def read(self, index: int) -> Content:
        """Return the text or the tuple of texts."""
        return self._texts[index]


class Unread:
    """Samples of which only labels are here; their features were computed elsewhere.

    Args:
        keys: N names.
        labels: Their labels, see :data:`probes.samples.Labels`.
    """

    def __init__(self, keys: Sequence[str], labels: Labels) -> None:
        self.keys = keys
        self.labels = labels
        self.fingerprint = hash_value(["unread", list(keys)])

    def read(self, index: int) -> Content:
        """Refuse.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"sample {self.keys[index]} is a label alone", mend="use --encoder features:train=FILE,test=FILE"
        )


class Selected:
    """Some of other samples.

    Attributes:
        base: The samples to choose from.
        rows: Their positions, int64.

    Args:
        base: The samples to choose from.
        rows: Positions to keep, int64.
    """

    def __init__(self, base: SampleSet, rows: npt.NDArray[np.int64]) -> None:
        self.keys = [base.keys[row] for row in rows]
        self.labels = base.labels[rows]
        self.fingerprint = hash_value([base.fingerprint, "selected", rows.tolist()])
        self.base = base
        self.rows = rows

    def read(self, index: int) -> Content:
        """Return the sample of the base."""
        return self.base.read(int(self.rows[index]))


class Shifted:
    """Other samples, each changed by a pure function of (sample, key).

    Attributes:
        base: The samples as they are.

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
        self.base = base
        self._shift = shift

    def read(self, index: int) -> Content:
        """Return the shifted sample."""
        shifted: Content = self._shift(self.base.read(index), self.keys[index])
        return shifted


def limited(samples: SampleSet, limit: int | None) -> SampleSet:
    """Return ``limit`` samples chosen by the hash of their keys; all of them without a limit."""
    if limit is None or limit >= len(samples.keys):
        return samples
    return Selected(samples, np.sort(rank_by_hash(samples.keys, "nml-limit/1")[:limit]))
