"""The ranks of a job in a container: what of the cluster's files they see, and how they are started in it.

The coordinator stays outside, where Slurm's commands are. With apptainer the agents do too, and start each
rank in a container. Pyxis is a plugin of srun, so there the agent of a node is inside with its ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError
from slurm.members import Container, Submission

PYXIS = "pyxis"
RUNTIMES = (PYXIS, "apptainer", "singularity")
# A command in a container that was killed ends so; outside, its status would be that of the signal.
_KILLED_STATUS, _KILLED = 128 + 9, -9


def enter(submission: Submission, container: Container, logs: Path) -> Submission:
    """Return a submission whose ranks run in a container, with the mounts that it needs.

    Those are the code, the launcher's folder, and every folder and file that the members' commands name.

    Args:
        submission: What is to run.
        container: As the user asked for it.
        logs: The launcher's folder of the run or sweep.

    Raises:
        UserError: If a path cannot be mounted.
    """
    named = [submission.snapshot, str(logs)]
    for member in submission.members:
        named += [member.cwd, member.record, member.done or "", member.progress or ""]
        named += [word.rpartition("=")[2] for word in member.argv[1:]]
    wanted = {_there(Path(name)) for name in named if name.startswith("/")}
    wanted.discard(Path("/"))
    roots = [path for path in sorted(wanted) if not any(parent in wanted for parent in path.parents)]
    for path in roots:
        if {":", ","} & set(str(path)):
            raise UserError(
                f"{path}: a container cannot mount a path with a : or a , in it", mend="choose another folder"
            )
    mounts = (*(f"{path}:{path}" for path in roots), *container.mounts)
    members = tuple(
        dataclasses.replace(member, argv=(container.python, *member.argv[1:]))
        if member.argv[1:2] == ("-m",)
        else member
        for member in submission.members
    )
    return dataclasses.replace(
        submission, members=members, container=dataclasses.replace(container, mounts=mounts)
    )


def _there(path: Path) -> Path:
    """Return a path, or of one that an earlier job will make the folder above that is there already."""
    return path if path.exists() or path == path.parent else _there(path.parent)


def srun_words(container: Container | None, workdir: str) -> list[str]:
    """Return the arguments of srun that put its tasks into a container, if that is how it is entered."""
    if container is None or container.runtime != PYXIS:
        return []
    mounts = ",".join(container.mounts)
    return [
        f"--container-image={container.image}",
        f"--container-mounts={mounts}",
        f"--container-workdir={workdir}",
    ]


def wraps(container: Container | None) -> bool:
    """Whether each rank is started by a program that stays its parent."""
    return container is not None and container.runtime != PYXIS


def command_inside(container: Container | None, argv: Sequence[str], cwd: str) -> list[str]:
    """Return the command that runs ``argv`` in the container, where the agent is outside of it."""
    if container is None or container.runtime == PYXIS:
        return list(argv)
    binds = [word for mount in container.mounts for word in ("--bind", mount)]
    gpus = ["--nv"] if container.gpus else []
    return [container.runtime, "exec", *gpus, *binds, "--pwd", cwd, container.image, *argv]


def status_outside(container: Container | None, status: int) -> int:
    """Return the exit status of a rank as if no program stood between it and its agent."""
    return _KILLED if wraps(container) and status == _KILLED_STATUS else status
