"""Files that are read from again and again, of which few may be open at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OpenFiles:
    """Descriptors of files by name; a copy of it in another process opens its own.

    Args:
        most: How many stay open; then the one that was opened first is closed.
        place: Tells where a file lies.
    """

    def __init__(self, most: int, place: Callable[[str], str | Path]) -> None:
        self._most, self._place = most, place
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, name: str) -> int:
        descriptor = self._open.get(name)
        if descriptor is None:
            if len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[name] = os.open(self._place(name), os.O_RDONLY | os.O_CLOEXEC)
        return descriptor

    def close(self) -> None:
        """Close all that is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    __del__ = close
