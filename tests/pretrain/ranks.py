"""Ranks that start fast, forked from a process that has imported everything: zygote.py, tests/commands.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from tests.commands import WARM, start_warm

ONE_THREAD = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


class Zygote:
    """The process that ranks are forked from; see zygote.py.

    Args:
        double: Whether they compute in float64.
    """

    def __init__(self, *, double: bool) -> None:
        # Messages keep their bounds.
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = start_warm(_serve, theirs, double)
        theirs.close()

    def fork(self, size: int, commands: tuple[list[str], ...], cwd: Path) -> Ranks:
        request = {
            "size": size,
            "commands": commands,
            "cwd": str(cwd),
            "environment": os.environ | ONE_THREAD,
        }
        output, theirs = os.pipe()
        socket.send_fds(self.socket, [json.dumps(request).encode()], [theirs])
        os.close(theirs)
        leader = self.socket.recv(64)
        assert leader, "the zygote ended early"
        return Ranks(int(leader), output, size)

    def end(self) -> None:
        # Closing alone is no end where a process that the tests forked, a loader's worker, still has it.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.process.join()


def _serve(ours: socket.socket, double: bool) -> None:
    # Here, as it imports torch, and the tests need not.
    from tests.pretrain import zygote

    zygote.serve(ours, double)


class Ranks:
    """Processes of a run, in a process group of their own.

    Args:
        leader: The process that waits for them.
        output: A pipe with what they print.
        size: How many there are.
    """

    def __init__(self, leader: int, output: int, size: int) -> None:
        self.leader = leader
        self.output = os.fdopen(output, errors="replace")
        self.pids: list[int] = []
        while len(self.pids) < size:
            line = self.output.readline()
            assert line, "the ranks ended early"
            if line.startswith("rank "):
                self.pids.append(int(line.split()[-1]))

    def running(self) -> bool:
        return psutil.pid_exists(self.leader)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.leader, signal.SIGKILL)
        # To the end, which comes when the last of them is gone.
        self.output.read()
        self.output.close()

    def end(self) -> tuple[int, str]:
        """Return the exit status and all output."""
        *lines, last = self.output.read().splitlines()
        self.output.close()
        assert last.startswith("status "), "\n".join([*lines, last])
        return int(last.split()[-1]), "\n".join(lines)


def call_on_ranks(size: int, store: Path, called: bytes) -> list[Any]:
    """Call a function on gloo ranks; return what each returned.

    Args:
        size: How many there are.
        store: A file by which they find each other.
        called: The function and its arguments beyond rank and size, by cloudpickle.
    """
    ends = [WARM.Pipe(duplex=False) for _ in range(size)]
    processes = [
        WARM.Process(target=_as_rank, args=(rank, size, str(store), called, ends[rank][1]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for _, writer in ends:
        # Else the end of a rank that dies would not be heard.
        writer.close()
    answers = [reader.recv() for reader, _ in ends]
    for process in processes:
        process.join()
    for ok, answer in answers:
        assert ok, answer
    return [answer for _, answer in answers]


def _as_rank(rank: int, size: int, store: str, called: bytes, answer: Any) -> None:
    import torch
    import torch.distributed as dist

    # The parent's pool of threads did not survive the fork.
    torch.set_num_threads(1)
    try:
        function, arguments = cloudpickle.loads(called)
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
        answer.send((True, function(rank, size, *arguments)))
    except BaseException:
        answer.send((False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
