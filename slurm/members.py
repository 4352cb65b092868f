"""What was submitted: a small file that the job reads back, so that nothing else needs pickling.

A submission is one Slurm job or array; a member is one of its elements. The file is written before
sbatch runs and never changes: a requeued job reads the same.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from nml.files import write_json
from nml.untrusted import Untrusted, read_typed, shown

LAUNCH = "launch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What one call of ``probes.run`` measures.

    Attributes:
        results: The results folder.
        run: The folder of the pre-training run, or an encoder that is given.
        task: The task.
        heads: The heads.
        receipts: Folder for the receipts of what it wrote (:mod:`slurm.receipts`).
    """

    results: str
    run: str
    task: str
    heads: tuple[str, ...]
    receipts: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One element of a submission.

    Attributes:
        name: What status and logs call it, for example ``pretrain n20``.
        argv: The command of one rank; all paths in it are absolute.
        record: Folder for the records of its attempts.
        done: The file that tells it is complete; None where a zero exit status says enough.
        progress: Folder of step-NNNNNNNN checkpoints by which progress is told; None for a command
            that starts over.
        distributed: Whether its ranks meet (RANK, MASTER_ADDR and so on are set).
        cwd: The folder it runs in, from which the relative paths of its user start.
        probe: What a probe measures, so that its rows can be told; None for other commands.
        ends: The sweep's folder that is over with this member; None for others.
    """

    name: str
    argv: tuple[str, ...]
    record: str
    done: str | None = None
    progress: str | None = None
    distributed: bool = False
    cwd: str
    probe: Probe | None = None
    ends: str | None = None

    @property
    def home(self) -> Path | None:
        """The ``launch`` folder of the run or sweep that its jobs belong to, whoever submits them."""
        return next((folder for folder in Path(self.record).parents if folder.name == LAUNCH), None)

    @property
    def module(self) -> str:
        """The module that ``argv`` runs, or nothing if it runs something else."""
        return self.argv[self.argv.index("-m") + 1] if "-m" in self.argv else ""

    @property
    def saves(self) -> bool:
        """Whether its command saves its state when it is told to stop."""
        return self.progress is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """The image that ranks run in.

    Attributes:
        image: As its runtime takes it.
        runtime: ``pyxis``, or the program that enters it.
        python: The interpreter in it.
        mounts: What of the node it shows, ``SOURCE:PLACE`` each.
        gpus: Whether its ranks use GPUs.
    """

    image: str
    runtime: str
    python: str
    mounts: tuple[str, ...] = ()
    gpus: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """One Slurm job or array.

    Attributes:
        stage: Its part in the whole, for example ``pretrain``.
        token: A unique word, also the job's comment, by which it is found again in the queue.
        snapshot: The code it runs.
        members: Its elements, in the array's order.
        indices: Their numbers in the array, rising; empty: 0 and on.
        max_idle_attempts: After how many attempts without progress a member is given up.
        nodes, spare_nodes: Nodes of each member, and those that stand by for one that fails.
        tasks: Ranks a node.
        cores: Of a rank.
        srun_args: Further arguments of srun.
        silence_s: For how long, and three steps, a rank may give no sign of life.
        signal_delay_s: How long before the time limit its ranks are told to save.
        container: What its ranks run in; None for the nodes themselves.
        notify: The user's command that is told of the end of a sweep.
    """

    stage: str
    token: str
    snapshot: str
    members: tuple[Member, ...]
    max_idle_attempts: int
    indices: tuple[int, ...] = ()
    nodes: int = 1
    spare_nodes: int = 0
    tasks: int = 1
    cores: int = 1
    srun_args: tuple[str, ...] = ()
    silence_s: int = 20
    signal_delay_s: int = 120
    container: Container | None = None
    notify: tuple[str, ...] = ()

    def write(self, file: Path) -> None:
        """Write the submission as JSON."""
        write_json(file, dataclasses.asdict(self))

    @classmethod
    def read(cls, file: Path) -> Submission:
        """Read what :meth:`write` wrote.

        Raises:
            OSError: If it cannot be read.
            Untrusted: If it is no submission.
        """
        submission = read_typed(cls, file)
        if not submission.members:
            raise Untrusted("it has no members", file)
        if submission.indices and sorted(set(submission.indices)) != list(submission.indices):
            raise Untrusted(f"indices is {shown(submission.indices)}", file)
        return submission

    def own_member(self) -> Member:
        """Return the member that the running job is."""
        index = own_index()
        return self.members[self.indices.index(index) if self.indices else index]


def own_index() -> int:
    """Return which member of its submission the running job is."""
    return int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)


def own_job() -> str:
    """Return the running job's id as Slurm's commands take it: ``12``, or ``12_3`` in an array.

    An array's SLURM_JOB_ID would not do: that of one element is the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{own_index()}" if array else os.environ["SLURM_JOB_ID"]


def own_attempt() -> str:
    """Return a name for this attempt of the running job, the same on every node."""
    return f"{own_job()}-{int(os.environ.get('SLURM_RESTART_COUNT') or 0):03d}"
