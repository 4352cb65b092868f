"""Loaders whose workers end with the reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches, and end the workers then, or where one of them fails.

    Of an iterator that an error keeps alive they end when garbage is collected: five seconds each, in
    whatever test that happens to be.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()
