"""Samples: what an encoder reads and a task provides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy.typing as npt
from PIL import Image

# Samples of ``features`` are their labels alone: the features come from elsewhere.
Modality = Literal["image", "text", "features"]
Labels = npt.NDArray[Any]
"""Classes, int64 [N]; of ``multilabel`` which apply, bool [N, K]; of ``regression`` numbers, float64 [N]."""
Content = Image.Image | str | tuple[str, ...]


class SampleSet(Protocol):
    """Labelled samples in a fixed order.

    Attributes:
        keys: N names, unique within the set.
        labels: Classes, int64 [N]; of ``multilabel`` which apply, bool [N, K]; or numbers, float64 [N].
        fingerprint: Hash of the bytes that the samples are made of, labels left out.
    """

    @property
    def keys(self) -> Sequence[str]:
        """N names, unique within the set."""
        ...

    @property
    def labels(self) -> Labels:
        """Classes, int64 [N]; of ``multilabel`` which apply, bool [N, K]; or numbers, float64 [N]."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the bytes that the samples are made of, labels left out."""
        ...

    def read(self, index: int) -> Content:
        """Return the image, the text or the tuple of texts at ``index``. Safe to call from threads.

        Raises:
            UserError: If the sample cannot be decoded; names its key.
        """
        ...
