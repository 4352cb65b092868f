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
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

START_SECONDS = 60
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
_ACCOUNTING_TOOLS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=10
SlurmdTimeout=5
SlurmctldTimeout=30
MessageTimeout=20
MailProg=/bin/true
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{accounting}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_NODE = "CPUs=2 RealMemory=4000"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage_port}
StorageUser=root
StoragePass=none
StorageLoc=slurm
"""


def missing(*, accounting: bool) -> str:
    """Return why a cluster cannot be started here, or nothing where it can."""
    tools = _TOOLS + (_ACCOUNTING_TOOLS if accounting else ())
    absent = [tool for tool in tools if shutil.which(tool, path=_PATH) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server"
        return f"{', '.join(absent)} not installed (Debian: {packages})"
    return "" if os.geteuid() == 0 else "Slurm's daemons start jobs for users and so need root"


@dataclasses.dataclass
class SlurmCluster:
    """A running cluster. Use :func:`running_cluster` to make one.

    Attributes:
        folder: Where all its state is.
        nodes: Names of the nodes.
        accounting: Whether slurmdbd runs, so that sacct answers.
    """

    folder: Path
    nodes: list[str]
    accounting: bool
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

    def start_node(self, name: str) -> None:
        """Start one node's slurmd, for the first time or after :meth:`kill_node`."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """Kill a node as a power cut would: its slurmd and every process of its jobs, without a word."""
        self.daemons.pop(name).kill()
        # The step's daemon before its tasks: it would tell srun how they ended.
        found = sorted(
            _processes_of(self.conf, node=name), key=lambda process: process.name() != "slurmstepd"
        )
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def wait_until_idle(self) -> None:
        """Wait until every node can take a job."""
        wait_for(lambda: self._states() == {"idle"}, f"idle nodes, found {self._states()}", self.folder)

    def reset(self) -> None:
        """Cancel all jobs and bring every node back, so that the next test finds an empty cluster."""
        self.call("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
        self.call("scancel", "--user=root", check=False)
        wait_for(lambda: not self.call("squeue", "--noheader").strip(), "an empty queue", self.folder)
        for name in self.nodes:
            if name not in self.daemons or self.daemons[name].poll() is not None:
                self.start_node(name)
        down = [name for name in self.nodes if not self._state(name).startswith("idle")]
        if down:
            self.call("scontrol", "update", f"NodeName={','.join(down)}", "State=RESUME", check=False)
        self.wait_until_idle()

    def _state(self, name: str) -> str:
        return self.call("sinfo", "--noheader", "--nodes", name, "--partition=main", "--format=%t").strip()

    def _states(self) -> set[str]:
        return set(self.call("sinfo", "--noheader", "--partition=main", "--format=%t", check=False).split())

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
        self._start("slurmctld", ["slurmctld", "-D"])
        wait_for(lambda: " is UP" in self.call("scontrol", "ping", check=False), "slurmctld", self.folder)
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
        data = self.folder / "database"
        port = free_port()
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"],
            check=True,
            capture_output=True,
        )
        # Grant tables off: no password to keep, and only this machine can reach the port.
        options = ["--no-defaults", "--user=root", "--skip-grant-tables", "--bind-address=127.0.0.1"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        options += [f"--datadir={data}", f"--socket={data}/socket", f"--port={port}"]
        self._start("mariadbd", ["mariadbd", *options])
        wait_for(lambda: listens(port), "mariadbd", self.folder)
        dbd_port = free_port()
        conf = self.conf.with_name("slurmdbd.conf")
        conf.write_text(
            _SLURMDBD_CONF.format(
                folder=self.folder, host=socket.gethostname(), port=dbd_port, storage_port=port
            )
        )
        conf.chmod(0o600)
        self._write_conf(_ACCOUNTING.format(port=dbd_port, folder=self.folder))
        self._start("slurmdbd", ["slurmdbd", "-D"])
        wait_for(lambda: listens(dbd_port), "slurmdbd", self.folder)
        self.call("sacctmgr", "--immediate", "add", "cluster", "test", check=False)

    def _write_conf(self, accounting: str) -> None:
        host = socket.gethostname()
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} {_NODE}"
            for name in self.nodes
        ]
        self.conf.write_text(
            _SLURM_CONF.format(
                host=host,
                folder=self.folder,
                controller_port=free_port(),
                accounting=accounting,
                nodes="\n".join(lines),
                names=f"n[0-{len(self.nodes) - 1}]",
            )
        )

    def prepare(self) -> None:
        """Make the folders and the configuration."""
        for name in ("etc", "log", "state", "spool"):
            (self.folder / name).mkdir()
        self._write_conf("AccountingStorageType=accounting_storage/none")

    def stop(self) -> None:
        """End every daemon and every job, and wait until they are gone."""
        for process in _processes_of(self.conf):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        self.daemons.clear()


@contextlib.contextmanager
def running_cluster(*, nodes: int = 8, accounting: bool = False) -> Iterator[SlurmCluster]:
    """Start a cluster, yield it, and stop it whole.

    Args:
        nodes: Number of nodes, each with 2 CPUs that are shared with every other node.
        accounting: Whether to run slurmdbd over a MariaDB.
    """
    # A short path: sockets in it may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = SlurmCluster(Path(folder), [f"n{index}" for index in range(nodes)], accounting)
        cluster.prepare()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _processes_of(conf: Path, node: str | None = None) -> Iterator[psutil.Process]:
    """Yield the daemons and job processes of a cluster: those started with its SLURM_CONF.

    Args:
        conf: The cluster's slurm.conf.
        node: Only the processes of this node's jobs, and its slurmd.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if process.pid in mine or environment.get("SLURM_CONF") != str(conf):
                continue
            if node is None or environment.get("SLURMD_NODENAME") == node or _is_stepd(process, node):
                yield process


def _is_stepd(process: psutil.Process, node: str) -> bool:
    """Whether a process is a node's slurmstepd: it has no job's variables, but its children do."""
    if process.name() != "slurmstepd":
        return False
    return any(child.environ().get("SLURMD_NODENAME") == node for child in process.children())


def free_port() -> int:
    """Return a TCP port below the ephemeral range, so that no outgoing connection can take it."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        if port not in _given and not listens(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port between 20000 and 32000")


_given: set[int] = set()


def listens(port: int) -> bool:
    """Whether something answers on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], what: str, folder: Path, seconds: float = START_SECONDS) -> None:
    """Wait for a condition; on a time-out show the last lines of every daemon's log."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = [
                f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                for log in sorted((folder / "log").glob("*"))
            ]
            raise TimeoutError(f"waited {seconds:g} s for {what}\n" + "\n".join(logs))
        time.sleep(0.1)
