"""The nodes of a job whose agents have come, and the lines to them.

Whoever connects is a stranger until it has proven that it is of this job (:mod:`slurm.wire`); a node whose
agent hangs up, falls silent or says what none does is lost, and its ranks with it.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from slurm import wire
from slurm.verdict import Beat

# A node that says nothing for so long is lost; agents speak every two seconds.
SILENCE_SECONDS = 60.0
_POLL_SECONDS = 0.2
# A turn that comes later than this was kept from it, as by `scontrol suspend`.
_GAP_SECONDS = 10.0
_PROOF_SECONDS = 10.0
_STRANGERS = 64


class Node:
    """A node whose agent has come: its line, address, ranks' last beats, and whether they have yet to end."""

    def __init__(self, line: wire.Line, address: str) -> None:
        self.line, self.address = line, address
        self.beats: list[Beat] = []
        self.busy = False


class Nodes:
    """The nodes of a job whose agents have come.

    Args:
        names: All nodes of the job.
        take: Called with each message of a node; a ValueError, KeyError or TypeError of it loses the node.
        lost: Called with a node that is lost, and why.
    """

    def __init__(
        self,
        names: Sequence[str],
        take: Callable[[str, dict[str, Any]], None],
        lost: Callable[[str, str], None],
    ) -> None:
        self._names, self._take, self._lost = names, take, lost
        self.token = secrets.token_hex(32)
        # On all interfaces: here its own name may lead to the loopback one, and elsewhere to another.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        # Since when they have been there.
        self._strangers: dict[wire.Line, float] = {}
        self._nodes: dict[str, Node] = {}
        self._turned = time.monotonic()

    @property
    def port(self) -> int:
        """Where agents reach this process."""
        return int(self._server.getsockname()[1])

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def close(self) -> None:
        """Say goodbye to all."""
        for node in self._nodes.values():
            with contextlib.suppress(wire.Gone):
                node.line.say(bye=True)
        self._server.close()

    def turn(self) -> None:
        """Hear whoever speaks, for a fifth of a second at most."""
        lines = {node.line: name for name, node in self._nodes.items()}
        heard: list[Any] = [self._server, *self._strangers, *lines]
        ready = set(wire.wait_for(heard, _POLL_SECONDS))
        for line in [one for one in self._strangers if one in ready]:
            self._hear_stranger(line)
        for line in [one for one in lines if one in ready]:
            self._hear(lines[line], line)
        if self._server in ready:
            self._accept()
        now = time.monotonic()
        gap, self._turned = now - self._turned, now
        if gap > _GAP_SECONDS:
            self._strangers = dict.fromkeys(self._strangers, now)
            for line in lines:
                line.heard = now
        for line in [one for one, since in self._strangers.items() if now - since > _PROOF_SECONDS]:
            del self._strangers[line]
            line.close()
        for name in [name for name, node in self._nodes.items() if now - node.line.heard > SILENCE_SECONDS]:
            self.lose(name, f"not heard of for {SILENCE_SECONDS:.0f} s")

    def tell(self, name: str, **message: Any) -> None:
        """Say something to a node that is still there."""
        if node := self._nodes.get(name):
            try:
                node.line.say(**message)
            except wire.Gone as gone:
                self.lose(name, f"its agent does not listen ({gone})")

    def lose(self, name: str, why: str) -> None:
        """Give a node up."""
        if (node := self._nodes.pop(name, None)) is None:
            return
        # It may live, and be late.
        with contextlib.suppress(wire.Gone):
            node.line.say(bye=True)
        node.line.close()
        self._lost(name, why)

    def _accept(self) -> None:
        try:
            line = wire.Line(self._server.accept()[0])
        except OSError:
            return
        try:
            if len(self._strangers) >= _STRANGERS + len(self._names):
                raise wire.Gone("too many")
            line.challenge()
            self._strangers[line] = time.monotonic()
        except wire.Gone:
            line.close()

    def _hear_stranger(self, line: wire.Line) -> None:
        try:
            messages = line.hear()
            if not messages:
                # The rest of it is on its way.
                return
            first, *more = messages
            name, address = str(first["node"]), str(first["address"])
            if not line.is_proven(first, self.token) or name not in self._names:
                raise wire.Gone("a stranger")
        except (wire.Gone, KeyError):
            del self._strangers[line]
            line.close()
            return
        del self._strangers[line]
        self.lose(name, "its agent was started again")
        self._nodes[name] = Node(line, address)
        self._take_all(name, line, more)

    def _hear(self, name: str, line: wire.Line) -> None:
        try:
            messages = line.hear()
        except wire.Gone as gone:
            self.lose(name, f"its agent is gone ({gone})")
        else:
            self._take_all(name, line, messages)

    def _take_all(self, name: str, line: wire.Line, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            # An answer that nobody takes ends the line, whatever else has come through it.
            if (node := self._nodes.get(name)) is None or node.line is not line:
                return
            try:
                self._take(name, message)
            except (ValueError, KeyError, TypeError) as error:
                self.lose(name, f"its agent says what none does ({error})")
