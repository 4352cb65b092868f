"""Things of a part that are measured whether or not those before them could be."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch


class Apart:
    """Keeps what goes wrong in one thing from the next ones.

    Attributes:
        failed: What went wrong, a line each.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Surround one thing."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(in_words(error, name))
        release_memory()

    def tell(self) -> None:
        """Say at the end what went wrong.

        Raises:
            RuntimeError: If anything did.
        """
        if self.failed:
            raise RuntimeError("; ".join(self.failed))


def in_words(error: Exception, name: str = "") -> str:
    """Return an error in a line."""
    return f"{name}{': ' if name else ''}{type(error).__name__}: {error}"[:500]


def release_memory() -> None:
    """Let go of what the device keeps for this process: what comes next may need it."""
    # After some errors the device answers nothing any more.
    with contextlib.suppress(RuntimeError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
