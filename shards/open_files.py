"""Files that are read from again and again, of which few may be open at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OpenFile:
    """A file that is open as long as somebody has this: a thread that reads, too.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: str | Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes from a place on; fewer where the file ends."""
        return os.pread(self._descriptor, size, offset)

    def read_into(self, target: bytearray | memoryview, offset: int) -> int:
        """Fill ``target`` from a place on, and return how many bytes there were."""
        return os.preadv(self._descriptor, [target], offset)


class OpenFiles:
    """Open files by name, for any number of threads; a copy of it in another process opens its own.

    Args:
        most: How many stay open; then the one that was opened first is let go of.
        place: Tells where a file lies.
    """

    def __init__(self, most: int, place: Callable[[str], str | Path]) -> None:
        self._most, self._place = most, place
        self._open: dict[str, OpenFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __getitem__(self, name: str) -> OpenFile:
        file = self._open.get(name)
        if file is None:
            # Steps that no other thread comes between, each: a lock would be held for ever by a fork's copy.
            names = list(self._open)
            for first in names[: max(0, len(names) - self._most + 1)]:
                self._open.pop(first, None)
            file = self._open[name] = OpenFile(self._place(name))
        return file

    def close(self) -> None:
        """Let go of all that is open."""
        self._open.clear()
