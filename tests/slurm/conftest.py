"""Fixtures of the launcher's tests: a real Slurm, and a project whose rooms do no work.

What a test costs here, on two cores that two more workers use, and how it costs less:

- ``cluster`` is one for all tests of a worker. A job costs 3 seconds from sbatch to its end, and a requeue 5
  more. What needs no Slurm takes ``--cluster local``, a stand-in of one of its programs (``stand_in``), or a
  job of processes of this machine (supervised.py).
- ``project.launch`` forks a launcher that has imported everything; ``project.start`` and ``edited_project``
  start a Python each. Cases of a test that begin alike are best one test.
- ``waiting`` asks ten times a second: where it asks a program for long, say ``pause=0.3``.
- A rank that imports torch costs 3 seconds of a core, and a run of it 5. What is about Slurm and not about
  weights is held with the toy rooms.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nml import cli
from slurm.entry import main
from slurm.snapshot import take_snapshot
from tests.slurm.forked_launcher import ForkedLauncher
from tests.slurm.supervised import SupervisedJob
from tests.slurm_cluster.slurm_daemons import SlurmCluster, missing, running_cluster, skip

if TYPE_CHECKING:
    from tests.slurm.real_runs import Launcher

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).parent / "toy_rooms"
WAIT_SECONDS = 120


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[SlurmCluster]:
    reason = missing(accounting=True)
    if reason:
        skip(reason)
    limits = "AccountingStorageEnforce=limits"
    with running_cluster(nodes=8, accounting=True, settings=[limits]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_bare_cluster() -> Iterator[SlurmCluster]:
    reason = missing(accounting=False)
    if reason:
        skip(reason)
    with running_cluster(nodes=2, settings=["MaxArraySize=2"]) as cluster:
        yield cluster


@pytest.fixture
def bare_cluster(
    shared_bare_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    """A small cluster of 2 idle nodes: no accounting, and arrays of 2 members at most."""
    for name, value in shared_bare_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield shared_bare_cluster
    shared_bare_cluster.reset()


@pytest.fixture(scope="module")
def launcher(shared_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """The launcher with the real rooms, for a file of tests."""
    # Here, as not every worker has such a file.
    from tests.slurm.real_runs import Launcher

    launcher = Launcher(shared_cluster, tmp_path_factory.mktemp("training"))
    yield launcher
    launcher.end()
    shared_cluster.reset()


@pytest.fixture
def cluster(shared_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster of 8 idle nodes with accounting; this process talks to it."""
    for name, value in shared_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield shared_cluster
    shared_cluster.reset()


@dataclasses.dataclass
class Project:
    """A copy of the launcher, with toy rooms around it, and a folder to work in.

    Attributes:
        code: The root of the code: slurm/launch.py and the rooms.
        work: The current folder of the commands.
        launcher: What runs the commands of this code, or None for a Python each.
    """

    code: Path
    work: Path
    launcher: ForkedLauncher | None = None

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``python slurm/launch.py WORDS``."""
        return subprocess.Popen(
            [sys.executable, str(self.code / "slurm" / "launch.py"), *words],
            cwd=self.work,
            env=os.environ | {"NML_SUBMIT_RETRY_SECONDS": "0.1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, *words: str, status: int = 0, **environment: str) -> str:
        """Run ``python slurm/launch.py WORDS`` and return what it printed."""
        # What is read as a command starts has been read where it is forked.
        if self.launcher is not None and "NML_SUBMIT_RETRY_SECONDS" not in environment:
            ended, said = self.launcher.run(words, self.work, os.environ | environment)
        else:
            process = self.start(*words, **environment)
            said = "".join(process.communicate(timeout=WAIT_SECONDS))
            ended = process.returncode
        assert ended == status, said
        return said


def copy_of_the_launcher(folder: Path) -> Path:
    # Whatever a user's folders are called, everything has to survive it.
    code = folder / 'ada\'s "code" $USER'
    for room in ("nml", "slurm"):
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOYS, code, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "recipes").mkdir()
    (code / "recipes" / "quickstart.yaml").write_text("{}\n")
    return code


@pytest.fixture(scope="session")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    code = copy_of_the_launcher(tmp_path_factory.mktemp("launcher"))
    launcher = ForkedLauncher(code)
    yield Project(code, code, launcher)
    launcher.end()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s my "work" $HOME'
    folder.mkdir()
    return folder


@pytest.fixture
def project(shared_project: Project, work: Path) -> Project:
    """The code is that of other tests too."""
    return dataclasses.replace(shared_project, work=work)


@pytest.fixture
def edited_project(tmp_path: Path, work: Path) -> Project:
    """For tests that change the code."""
    return Project(copy_of_the_launcher(tmp_path), work)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # By its name a search path would be cut in two.
    return take_snapshot(tmp_path_factory.mktemp("at 12:30:00") / "snapshots", ROOT)


@pytest.fixture
def job(tmp_path: Path, snapshot: Path) -> Iterator[SupervisedJob]:
    """A job of processes of this machine."""
    own = SupervisedJob(tmp_path, snapshot)
    yield own
    own.kill()


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a program that stands in for one of Slurm's; return its folder, to come first in a PATH.

    In the script, HERE is that folder and REAL the program itself.
    """

    def write(program: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / program
        file.write_text(f'#!/bin/bash\nHERE="{folder}"\nREAL="{shutil.which(program)}"\n{script}')
        file.chmod(0o755)
        return folder

    return write


def wait_until(
    condition: Callable[[], object], what: str = "", seconds: float = WAIT_SECONDS, *, pause: float = 0.1
) -> None:
    """Wait for a condition, and say what it was if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what or condition}"
        time.sleep(pause)


@pytest.fixture(scope="session")
def no_controller(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slurm.conf of a cluster that is down, so that where Slurm is installed it answers so at once."""
    conf = tmp_path_factory.mktemp("down") / "slurm.conf"
    conf.write_text(
        "ClusterName=down\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n"
        "NodeName=n0 NodeAddr=127.0.0.1\nPartitionName=main Nodes=n0\n"
    )
    return str(conf)


@pytest.fixture
def refused(
    tmp_path: Path, no_controller: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command line that is a mistake, in this process, and return what it printed.

    It has to end with status 2 and one line, and leave nothing behind.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", no_controller)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: main(list(words)))
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2, said
        assert len(said.strip().splitlines()) == 1, said
        assert not list(tmp_path.iterdir())
        return said

    return run


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False)
    if mounted.returncode:
        skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def waiting() -> Callable[..., None]:
    return wait_until
