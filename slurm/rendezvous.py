"""Where the ranks of a job meet: the first node's address and a free port on it.

Run in the batch script, which Slurm starts on the first node of the job, where rank 0 will be. Node
names need not resolve: Slurm's own NodeAddr is what its daemons reach the node by.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import random
import socket
import struct
from pathlib import Path

from slurm.controller import answer

# Below every sane ephemeral range: no outgoing connection can have taken such a port.
_LOWEST_PORT = 12000
_HIGHEST_PORT = 32000
_TRIES = 100
_SIOCGIFADDR = 0x8915


def node_address(node: str) -> str:
    """Return an address of a node, as Slurm's daemons use it.

    Falls back to the node's name, and to this machine's own address where that does not resolve.
    """
    shown = answer(["scontrol", "show", "node", node, "--oneliner"]).stdout
    words = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    for candidate in (words.get("NodeAddr"), node):
        if candidate and _resolves(candidate):
            return candidate
    return _own_address()


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _own_address() -> str:
    # No packet is sent: connecting a datagram socket only asks the routing table.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        return address


def choose_port(seed: str) -> int:
    """Return a port below the ephemeral range that nothing on this machine uses.

    Args:
        seed: Another for each start, so that jobs that start together on a machine look in different places.

    Raises:
        RuntimeError: If no port was found.
    """
    numbers = random.Random(seed)  # noqa: S311 - ports are no secret
    highest = min(_HIGHEST_PORT, _ephemeral_start())
    for _ in range(_TRIES):
        port = numbers.randrange(_LOWEST_PORT, highest)
        with socket.socket() as probe:
            # As torch's store binds: a port in TIME_WAIT from an earlier attempt is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port between {_LOWEST_PORT} and {highest}")


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return _HIGHEST_PORT


def interface_towards(address: str) -> str | None:
    """Return the name of the network interface that reaches ``address``, or None if it cannot be told.

    Gloo would otherwise look up this node's name, and settle for the loopback interface where it
    does not resolve.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            own = ipaddress.ip_address(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", os.fsencode(name)[:15])
                try:
                    answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
                except OSError:
                    continue
                if ipaddress.ip_address(answer[20:24]) == own:
                    return name
    except OSError:
        return None
    # All of 127.0.0.0/8 is the loopback interface, which has one address of it.
    return "lo" if own.is_loopback else None
