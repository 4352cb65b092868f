"""The line between the coordinator of a job and the agents on its nodes: a JSON object a line, bounded.

Whoever connects is asked for a keyed hash of a number that was never used before; the key is a token of the
job, which only the environment of its processes holds. It never travels.
"""

from __future__ import annotations

import hmac
import json
import secrets
import select
import socket
import time
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from nml.untrusted import check_object, parse_json

TOKEN = "NML_JOB_TOKEN"  # noqa: S105 - the variable's name
COORDINATOR = "NML_COORDINATOR"
MOST_BYTES = 1 << 16
# Whoever does not take a message for so long has stopped reading.
_SEND_SECONDS = 5.0


class _End(Protocol):
    def fileno(self) -> int: ...


E = TypeVar("E", bound=_End)


class Gone(Exception):
    """The other end has closed, does not listen, or says what nobody of this job says."""


class Line:
    """One end of a line.

    Args:
        connected: The socket.

    Attributes:
        heard: When something came last, by time.monotonic().
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._rest = b""
        self._nonce = secrets.token_hex(16)
        connected.settimeout(_SEND_SECONDS)
        self.heard = time.monotonic()

    def fileno(self) -> int:
        """Return what ``select`` waits for."""
        return self._socket.fileno()

    @property
    def own_address(self) -> str:
        """The address of this end."""
        address: str = self._socket.getsockname()[0]
        return address

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def say(self, **message: Any) -> None:
        """Send a message.

        Raises:
            Gone: If nobody takes it.
        """
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Gone(str(error)) from error

    def hear(self) -> list[dict[str, Any]]:
        """Return the messages that have come; waits for the first byte only.

        Raises:
            Gone: If there will be no more, or one is no message.
        """
        try:
            came = self._socket.recv(MOST_BYTES)
        except OSError as error:
            raise Gone(str(error)) from error
        *lines, self._rest = (self._rest + came).split(b"\n")
        if not came or len(self._rest) > MOST_BYTES:
            raise Gone("it was closed" if not came else "a message has no end")
        self.heard = time.monotonic()
        try:
            return [check_object(parse_json(line, most=MOST_BYTES)) for line in lines]
        except ValueError as error:
            raise Gone(str(error)) from error

    def challenge(self) -> None:
        """Ask the other end for its proof that it is of this job."""
        self.say(nonce=self._nonce)

    def is_proven(self, message: dict[str, Any], token: str) -> bool:
        """Whether a message is the answer to :meth:`challenge` of somebody who knows ``token``."""
        # As bytes: a text that is no ASCII would be an error here, which anybody could cause.
        claimed = str(message.get("proof")).encode(errors="surrogatepass")
        return hmac.compare_digest(claimed, proof(token, self._nonce).encode())


def wait_for(ends: Iterable[E], seconds: float) -> list[E]:
    """Wait for something to come at one of many ends, also of more than 1,024; return where it has."""
    numbers = {end.fileno(): end for end in ends}
    poll = select.poll()
    for number in numbers:
        poll.register(number, select.POLLIN)
    return [numbers[number] for number, _ in poll.poll(seconds * 1000)]


def proof(token: str, nonce: str) -> str:
    """Return the answer to a challenge."""
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()
