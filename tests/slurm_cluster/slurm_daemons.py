"""A real Slurm on one machine: several slurmd, one controller, and accounting if wanted.

All state lives in one temporary folder and all daemons are children of this process, in the
foreground, so that stopping is whole: no service, no pid file, no change to the machine. Node
names (n0, n1, ...) do not resolve, as on clusters whose compute nodes are unknown to DNS; each
node is told apart by its port on 127.0.0.1.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge; slurmdbd and mariadb-server for
accounting. Seen with Slurm 22.05.8.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.slurm_cluster.slurm_conf import write_slurm_conf, write_slurmdbd_conf
from tests.slurm_cluster.slurm_ports import free_port, listens
from tests.slurm_cluster.slurm_processes import kill_processes

START_SECONDS = 60
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
_ACCOUNTING_TOOLS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def missing(*, accounting: bool) -> str:
    """Return why a cluster cannot be started here, or nothing where it can."""
    tools = _TOOLS + (_ACCOUNTING_TOOLS if accounting else ())
    absent = [tool for tool in tools if shutil.which(tool, path=_PATH) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server"
        return f"{', '.join(absent)} not installed (Debian: {packages})"
    return "" if os.geteuid() == 0 else "Slurm's daemons start jobs for users and so need root"


def skip(reason: str) -> None:
    """Skip a test for want of something; where machines judge a change as root, nothing may be wanting."""
    # Whoever develops on a cluster needs none.
    import pytest

    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"{reason}: no reason to skip in continuous integration")
    pytest.skip(reason)


@dataclasses.dataclass
class SlurmCluster:
    """A running cluster. Use :func:`running_cluster` to make one.

    Attributes:
        folder: Where all its state is.
        nodes: Names of the nodes.
        accounting: Whether slurmdbd runs, so that sacct answers.
        settings: Further lines of slurm.conf.
    """

    folder: Path
    nodes: list[str]
    accounting: bool
    settings: tuple[str, ...] = ()
    daemons: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def conf(self) -> Path:
        """The slurm.conf, to be exported as SLURM_CONF."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": _PATH}

    def call(self, *argv: str, check: bool = True) -> str:
        """Run one of Slurm's commands on this cluster and return its output."""
        done = subprocess.run(
            argv, env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """Return one field of what Slurm shows of a job, or nothing where it has none."""
        shown = self.call("scontrol", "show", "job", job, "--oneliner", check=False)
        found = re.search(rf"\b{name}=(\S+)", shown)
        return found[1] if found else ""

    def let_come_back(self, job: str, restarts: int, seconds: float = START_SECONDS) -> None:
        """Wait until a job is requeued, and end Slurm's two minutes of waiting after it.

        Not at once: Slurm counts in seconds whether a node's word about the job is from before the requeue. A
        job that starts in the same second is refused by the node that has just ended it (credential revoked),
        and fails. One that lost a node may start elsewhere in the moment in which the node is given up: it
        needs no help.
        """

        def requeued() -> bool:
            ended = self.field(job, "JobState") != "COMPLETING"
            return ended and int(self.field(job, "Restarts") or 0) >= restarts

        wait_for(requeued, f"requeue {restarts} of job {job}", self.folder, seconds, pause=0.3)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+2", check=False)

    def start_controller(self) -> None:
        """Start the controller, for the first time or after it was ended, and wait until it answers."""
        self._start("slurmctld", ["slurmctld", "-D"])
        wait_for(lambda: " is UP" in self.call("scontrol", "ping", check=False), "slurmctld", self.folder)

    def start_node(self, name: str) -> None:
        """Start one node's slurmd, for the first time or after :meth:`kill_node`."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """Kill a node as a power cut would: its slurmd and every process of its jobs, without a word."""
        self.daemons.pop(name).kill()
        kill_processes(self.conf, node=name)

    def wait_until_idle(self) -> None:
        """Wait until every node can take a job."""
        wait_for(lambda: {*self._states().values()} == {"idle"}, "idle nodes", self.folder)

    def bring_back_nodes(self) -> None:
        """Start the slurmd of every node that was killed, and have the nodes take jobs again."""
        dead = [
            name for name in self.nodes if name not in self.daemons or self.daemons[name].poll() is not None
        ]
        for name in dead:
            self.start_node(name)
        states = self._states().items()
        down = [name for name, state in states if state.startswith(("down", "drain", "fail"))]
        if down:
            self.call("scontrol", "update", f"NodeName={','.join(down)}", "State=RESUME", check=False)

    def reset(self) -> None:
        """Cancel all jobs and bring every node back, so that the next test finds an empty cluster."""
        self.call("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
        self.call("scancel", "--user=root", check=False)
        wait_for(lambda: not self.call("squeue", "--noheader").strip(), "an empty queue", self.folder)
        self.bring_back_nodes()
        self.wait_until_idle()

    def _states(self) -> dict[str, str]:
        words = ("--noheader", "--Node", "--partition=main", "--format=%N %t")
        shown = self.call("sinfo", *words, check=False).split()
        return dict(zip(shown[::2], shown[1::2], strict=True))

    def _start(self, name: str, argv: Sequence[str], **environment: str) -> None:
        log = self.folder / "log" / f"{name}.out"
        with log.open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(argv[0], path=_PATH) or argv[0], *argv[1:]],
                env=os.environ | self.environment | environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    def start(self) -> None:
        """Start every daemon and wait until every node is idle."""
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self.wait_until_idle()

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        home.mkdir(mode=0o755)
        key = home / "key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        options = {
            "key-file": key,
            "socket": home / "socket",
            "pid-file": home / "pid",
            "seed-file": home / "seed",
        }
        # --force: its own folder under a world-writable /tmp is fine for a key that lives for one test run.
        self._start(
            "munged",
            ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items())],
        )
        wait_for(lambda: (home / "socket").exists(), "munged", self.folder)

    def _start_accounting(self) -> None:
        port, dbd_port = self._start_database(), free_port()
        write_slurmdbd_conf(self.folder, port=dbd_port, storage_port=port)
        write_slurm_conf(self.folder, self.nodes, accounting_port=dbd_port, settings=self.settings)
        self._start("slurmdbd", ["slurmdbd", "-D"])
        wait_for(lambda: listens(dbd_port), "slurmdbd", self.folder)
        # It listens before it has reached its database, and a controller that asks it too early ends.
        wait_for(self._has_cluster, "the database", self.folder)
        # Where limits are enforced, a user without an account may submit nothing.
        self.call("sacctmgr", "--immediate", "add", "account", "main", check=False)
        self.call("sacctmgr", "--immediate", "add", "user", "root", "account=main", check=False)

    def _start_database(self) -> int:
        data, temporary, port = self.folder / "database", self.folder / "temporary", free_port()
        temporary.mkdir()
        # A server that starts removes what temporary tables it finds, also those of another one that runs.
        places = ["--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={temporary}"]
        install = ["mariadb-install-db", *places, "--skip-test-db"]
        made = subprocess.run(install, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RuntimeError(f"{' '.join(install)}: {made.stdout}{made.stderr}")
        # Grant tables off: no password to keep, and only this machine can reach the port.
        options = [*places, "--skip-grant-tables", "--bind-address=127.0.0.1"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        options += [f"--socket={data}/socket", f"--port={port}"]
        self._start("mariadbd", ["mariadbd", *options])
        wait_for(lambda: listens(port), "mariadbd", self.folder)
        return port

    def _has_cluster(self) -> bool:
        self.call("sacctmgr", "--immediate", "add", "cluster", "test", check=False)
        return "test" in self.call("sacctmgr", "--noheader", "list", "cluster", "format=cluster", check=False)

    def prepare(self) -> None:
        """Make the folders and the configuration."""
        for name in ("etc", "log", "state", "spool"):
            (self.folder / name).mkdir()
        write_slurm_conf(self.folder, self.nodes, accounting_port=None, settings=self.settings)

    def stop(self) -> None:
        """End every daemon and every job, and wait until they are gone."""
        kill_processes(self.conf)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        self.daemons.clear()


@contextlib.contextmanager
def running_cluster(
    *, nodes: int = 8, accounting: bool = False, settings: Sequence[str] = ()
) -> Iterator[SlurmCluster]:
    """Start a cluster, yield it, and stop it whole.

    Args:
        nodes: Number of nodes, each with 2 CPUs that are shared with every other node.
        accounting: Whether to run slurmdbd over a MariaDB.
        settings: Further lines of slurm.conf, for example ``MaxArraySize=3``.
    """
    # A short path: sockets in it may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        names = [f"n{index}" for index in range(nodes)]
        cluster = SlurmCluster(Path(folder), names, accounting, tuple(settings))
        cluster.prepare()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def wait_for(
    condition: Callable[[], bool], what: str, folder: Path, seconds: float = START_SECONDS, pause: float = 0.1
) -> None:
    """Wait for a condition; on a time-out show the last lines of every daemon's log."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = [
                f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                for log in sorted((folder / "log").glob("*"))
            ]
            raise TimeoutError(f"waited {seconds:g} s for {what}\n" + "\n".join(logs))
        time.sleep(pause)
