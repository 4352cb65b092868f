"""Commands of the project in processes of their own, without the seconds in which each imports its libraries.

They are forked from one process that has imported everything and done nothing else: no thread, no file and
no state of the tests is theirs. What a command does as it starts is not met this way: that takes a real one.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    [
        *("pytest", "tests.commands", "timm", "torch", "open_clip", "matplotlib.font_manager"),
        *("plugins.__main__", "probes.run", "probes.probing", "probes.predict", "probes.reporting.build"),
        *("shards.write", "shards.relabel", "shards.verify", "pretrain.assembly", "slurm.launch"),
    ]
)


def start_warm(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that calls ``target``, forked from the one that has imported everything."""
    with patch.dict(os.environ, ONE_THREAD):
        multiprocessing.forkserver.ensure_running()
    process = WARM.Process(target=target, args=arguments)
    process.start()
    return process


class Command:
    """``python -m MODULE WORDS``, running.

    Args:
        module: What is run.
        words: Its arguments.
        cwd: Its working folder.
        environment: What its environment has besides that of the tests. A library that reads a variable as it
            is imported has done so before.
    """

    def __init__(self, module: str, *words: str, cwd: Path, **environment: str) -> None:
        self.words = [module, *words]
        self._said = tempfile.TemporaryDirectory()
        variables = os.environ | ONE_THREAD | environment
        self.process = start_warm(_be, self.words, str(cwd), variables, self._said.name)

    def running(self) -> bool:
        return self.process.is_alive()

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return what it printed and how it ended."""
        self.process.join()
        said = [Path(self._said.name, name).read_text() for name in ("stdout", "stderr")]
        self._said.cleanup()
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *said)


def run_command(module: str, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE WORDS`` to its end; see :class:`Command`."""
    return Command(module, *words, cwd=cwd, **environment).end()


def _be(words: list[str], cwd: str, environment: dict[str, str], said: str) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(said, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    # Forked ones have the null device in its place; a command may look what it is.
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = words[1:]
    with warnings.catch_warnings():
        # That the module is imported is what this is for.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
