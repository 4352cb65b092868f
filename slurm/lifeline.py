"""Child processes that end with the launcher, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_this_process() -> Callable[[], None]:
    """Return what a child does before it becomes its program: ask for SIGTERM when this process is gone.

    For ``preexec_fn``; the launcher runs no threads.
    """
    parent = os.getpid()

    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have gone in between.
        if os.getppid() != parent:
            os._exit(1)

    return ask
