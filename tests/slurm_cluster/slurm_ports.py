"""Ports of 127.0.0.1 for daemons."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below the ephemeral range, so that no outgoing connection can take one.
FIRST, LAST = 20000, 31999
_held: dict[int, IO[str]] = {}


def free_port() -> int:
    """Return a TCP port that this process keeps for its daemons until it ends.

    A port is asked for long before a daemon listens on it. A lock keeps it from other processes that start
    a cluster at the same moment, as the workers of a parallel test run do.
    """
    locks = Path(tempfile.gettempdir()) / "slurm-cluster-ports"
    locks.mkdir(exist_ok=True)
    start = os.getpid() % (LAST - FIRST + 1)
    for port in (*range(FIRST + start, LAST + 1), *range(FIRST, FIRST + start)):
        if port in _held:
            continue
        file = (locks / str(port)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        if listens(port):
            file.close()
            continue
        _held[port] = file
        return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def listens(port: int) -> bool:
    """Whether something answers on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
