"""Commands of the launcher in forked processes, so that not each of them has to import it for itself.

usage: forked_launcher.py CODE SOCKET

CODE is a copy of the code. Each message on SOCKET, a file descriptor, is a JSON object, what a command is
given, and two files for what it prints; the answer is its exit status.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

WAIT_SECONDS = 60


class ForkedLauncher:
    """The process that forks the commands.

    Args:
        code: The code that they run.
    """

    def __init__(self, code: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(WAIT_SECONDS)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(code), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"NML_SUBMIT_RETRY_SECONDS": "0.1"},
        )
        theirs.close()

    def run(self, words: tuple[str, ...], cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Run ``launch.py WORDS``; return the exit status and what it printed, its errors last."""
        given = {"words": words, "cwd": str(cwd), "environment": environment}
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            socket.send_fds(self._socket, [json.dumps(given).encode()], [output.fileno(), errors.fileno()])
            status = int(self._socket.recv(64))
            for file in (output, errors):
                file.seek(0)
            return status, output.read() + errors.read()

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._process.wait()


def serve(ours: socket.socket) -> None:
    """Fork a process for each message; return in each of them, and at the end."""
    while True:
        message, files, _, _ = socket.recv_fds(ours, 1 << 20, 2)
        if not message:
            sys.exit()
        child = os.fork()
        if child == 0:
            break
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        ours.send(str(os.waitstatus_to_exitcode(status)).encode())
    ours.close()
    for descriptor, file in enumerate(files, start=1):
        os.dup2(file, descriptor)
        os.close(file)
    given = json.loads(message)
    os.chdir(given["cwd"])
    os.environ.clear()
    os.environ.update(given["environment"])
    sys.argv[1:] = given["words"]


if __name__ == "__main__":
    code, number = sys.argv[1:]
    # As launch.py does.
    sys.path[0] = code
    sys.argv[0] = str(Path(code) / "slurm" / "launch.py")
    from nml import cli
    from slurm.entry import main

    serve(socket.socket(fileno=int(number)))
    cli.run(main)
