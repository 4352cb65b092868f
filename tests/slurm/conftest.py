"""Fixtures of the launcher's tests: a real Slurm, and a project whose rooms do no work."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nml import cli
from slurm.entry import main
from tests.slurm_cluster.slurm_daemons import SlurmCluster, missing, running_cluster

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).parent / "toy_rooms"
WAIT_SECONDS = 60


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[SlurmCluster]:
    reason = missing(accounting=True)
    if reason:
        pytest.skip(reason)
    limits = "AccountingStorageEnforce=limits"
    with running_cluster(nodes=8, accounting=True, settings=[limits]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_bare_cluster() -> Iterator[SlurmCluster]:
    reason = missing(accounting=False)
    if reason:
        pytest.skip(reason)
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
    """

    code: Path
    work: Path

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
        process = self.start(*words, **environment)
        output, errors = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == status, output + errors
        return output + errors


@pytest.fixture
def project(tmp_path: Path) -> Project:
    # Whatever a user's folders are called, everything has to survive it.
    code = tmp_path / 'ada\'s "code" $USER'
    for room in ("nml", "slurm"):
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOYS, code, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "recipes").mkdir()
    (code / "recipes" / "quickstart.yaml").write_text("{}\n")
    work = tmp_path / 'it\'s my "work" $HOME'
    work.mkdir()
    return Project(code, work)


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
    condition: Callable[[], object], what: str = "", seconds: float = WAIT_SECONDS, *, pause: float = 0.05
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
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def waiting() -> Callable[..., None]:
    return wait_until
