"""The end of a rank that cannot say what it would, or of which nobody hears it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# As a rank with a loader worker, which is deaf to the signal by which Python would end it before it waits.
RANK = """
import errno, multiprocessing, os, signal, sys, time
from pretrain import ending
from pretrain.world import World

def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def main():
    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
    world = World()
    with ending.watched(world) as own, ending.failing(world, own):
        raise {"full": OSError(errno.ENOSPC, "No space left on device", "run/DONE.json"),
               "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"), "bug": RuntimeError("a bug")}[sys.argv[1]]

ending.run(main)
"""


@pytest.mark.parametrize(
    ("fault", "streams", "status", "said"),
    [
        (
            "full",
            "",
            2,
            "error: run/DONE.json: No space left on device; make room and run the same command again",
        ),
        ("full", ">/dev/full 2>&1", 1, ""),
        ("full", ">&- 2>&-", 2, ""),
        ("pipe", "", 141, ""),
        ("bug", ">/dev/full 2>&1", 1, ""),
        ("bug", ">&-", 1, "rank 0 of 1 on "),
    ],
)
def test_a_rank_ends_where_nothing_can_be_written(
    tmp_path: Path, fault: str, streams: str, status: int, said: str
) -> None:
    file = tmp_path / "rank.py"
    file.write_text(RANK)
    line = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(file))} {fault} {streams}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1:]
    assert (done.returncode, "".join(last)[: len(said)]) == (status, said)
    assert fault == "bug" or len(done.stderr.splitlines()) == len(last)
