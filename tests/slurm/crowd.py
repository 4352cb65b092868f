"""The agents of many nodes in one process, with ranks that are numbers, for a coordinator that is real.

    python -m tests.slurm.crowd FILE NODES BEATS

FILE holds where the coordinator listens and its token. In the first round every agent beats BEATS times, then
a rank is killed and all others fail; in the second one all ranks end well.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

from slurm import wire

BEAT_SECONDS = 0.2
WORDS = (
    "Traceback (most recent call last):\n"
    + "  a line of it\n" * 60
    + "RuntimeError: Connection closed by peer\n"
)


class Crowd:
    """All agents of a job.

    Args:
        address: Where the coordinator listens.
        token: The job's.
        nodes: How many agents.
        beats: How often each beats before a rank is killed.
    """

    def __init__(self, address: tuple[str, int], token: str, nodes: int, beats: int) -> None:
        self.token, self.beats = token, beats
        self.told: dict[wire.Line, dict[str, Any]] = {}
        self.beaten: dict[wire.Line, int] = {}
        self.lines: dict[wire.Line, str] = {}
        self.selector = selectors.DefaultSelector()
        for node in range(nodes):
            line = wire.Line(socket.create_connection(address))
            self.lines[line] = f"n{node}"
            self.selector.register(line, selectors.EVENT_READ)

    def run(self) -> None:
        """Do as agents do until the coordinator has said goodbye to all."""
        due = time.monotonic()
        while self.lines:
            for key, _ in self.selector.select(BEAT_SECONDS / 4):
                for message in key.fileobj.hear():
                    self.take(key.fileobj, message)
            if time.monotonic() > due:
                due += BEAT_SECONDS
                for line in self.told:
                    self.beat(line)

    def take(self, line: wire.Line, message: dict[str, Any]) -> None:
        """Do what the coordinator says."""
        if "nonce" in message:
            answer = wire.proof(self.token, message["nonce"])
            line.say(proof=answer, node=self.lines[line], address="127.0.0.1")
        if "start" in message:
            self.told[line], self.beaten[line] = message["start"], 0
        if "end" in message:
            line.say(ended=True, round=self.told.pop(line)["round"])
        if "bye" in message:
            self.selector.unregister(line)
            del self.lines[line]

    def beat(self, line: wire.Line) -> None:
        """Tell of the ranks of a node, and in time how they end."""
        told, count = self.told[line], self.beaten[line]
        ranks = range(told["first"], told["first"] + told["local_world"])
        self.beaten[line] += 1
        if count < self.beats:
            beats = [{"rank": rank, "step": count, "pace": 0.2, "phase": "computing"} for rank in ranks]
            line.say(beats=[{**one, "quiet": 0.0, "still": 0.0} for one in beats], round=told["round"])
        if count == self.beats:
            for rank in ranks:
                status = 0 if told["round"] > 1 else -9 if rank == told["world"] // 2 else 1
                line.say(exit=status, rank=rank, words=WORDS if status else "", round=told["round"])


if __name__ == "__main__":
    host, port, key = Path(sys.argv[1]).read_text().split()
    Crowd((host, int(port)), key, int(sys.argv[2]), int(sys.argv[3])).run()
