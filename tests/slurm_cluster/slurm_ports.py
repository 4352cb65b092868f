"""Ports of 127.0.0.1 for daemons."""

from __future__ import annotations

import os
import socket


def free_port() -> int:
    """Return a TCP port below the ephemeral range, so that no outgoing connection can take it."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        if port not in _given and not listens(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port between 20000 and 32000")


_given: set[int] = set()


def listens(port: int) -> bool:
    """Whether something answers on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
