"""``launch.py shards``: a shard set by one job, or as plan -> array of packers -> finish on several nodes."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError
from slurm import executor
from slurm.cluster import Resources
from slurm.controller import cancel
from slurm.dag import max_array_size
from slurm.invocation import PROG, Invocation, command_line
from slurm.journal import Journal
from slurm.members import LAUNCH, Member, Submission
from slurm.partitions import check_fits
from slurm.pretraining import find_cluster, resources_of
from slurm.rooms import check_command, options_of
from slurm.single import SingleCommand
from slurm.snapshot import take_snapshot
from slurm.standin import run_command, run_ranks

_STAGE = "shards"
# Options that say how it is packed and not what; the rest is the plan's.
_OF_PACKING = ("--workers",)
_OF_ALL = ("--staging",)


class ShardsCommand(SingleCommand):
    """Writes a set by one process, or with ``--nodes N`` by a packing process a node."""

    def run(self, call: Invocation) -> int:
        """Check the options of shards.write, then write the set here or submit it."""
        nodes = resources_of(call.options, self.stage).nodes
        if nodes == 1:
            return super().run(call)
        check_command([sys.executable, "-m", self.module, *call.rest])
        steps = Steps(call.rest, nodes)
        found = find_cluster(call.options.cluster)
        # Each part is a job of its own, so that one that waits for a node keeps no other waiting.
        resources = resources_of(call.options, self.stage, nodes=1)
        if resources.tasks > 1:
            raise UserError(f"{self.module} uses no GPU", possible="--gpus-per-node 0 or 1")
        if found.found:
            check_fits(resources)
            if nodes > max_array_size():
                raise UserError(
                    f"--nodes {nodes}: more than this cluster's longest array",
                    possible=f"up to {max_array_size()}",
                )
        if call.options.dry_run:
            for commands in steps.stages().values():
                for argv in commands:
                    print(f"# {shlex.join(argv)}")
            return 0
        if found.found:
            return _submit(call, steps, resources)
        print(f"{found.sentence}: {nodes} local processes stand in", flush=True)
        return _run_here(steps)


class Steps:
    """The command lines of the steps: of plan, packers and finish; with an encoder, of two more before.

    Args:
        words: The options of shards.write.
        parts: How many processes pack.
    """

    def __init__(self, words: Sequence[str], parts: int) -> None:
        options = options_of(words)
        out = options.get("--out")
        if not out:
            raise UserError(
                f"--nodes {parts}: several processes need a place", mend="name it: --out FOLDER or URL"
            )
        of_all = [word for name in _OF_ALL if name in options for word in (name, *options[name])]
        self.parts = parts
        self.workers = options.get("--workers")
        self.plan = _command("plan", *_without(words, _OF_PACKING))
        encoded = "--encoder" in options
        self._begin = [*self.plan, "--encode-by-parts"] if encoded else None
        self._encode = _command("encode", *out, *of_all)
        self._pack = _command("pack", *out, *of_all)
        self.finish = _command("finish", *out, *of_all)

    def pack(self, number: int, *, workers: int | None = None) -> list[str]:
        """Return the command of part ``number``, from 0."""
        words = self.workers or ([str(workers)] if workers else [])
        part = ["--part", f"{number + 1}/{self.parts}"]
        return [*self._pack, *part, *(["--workers", *words] if words else [])]

    def stages(self, *, workers: int | None = None) -> dict[str, list[list[str]]]:
        """Return the commands of each step, by its name; those of one step run at once."""
        stages = {
            "plan": [self.plan],
            "pack": [self.pack(number, workers=workers) for number in range(self.parts)],
            "finish": [self.finish],
        }
        if self._begin is None:
            return stages
        parts = [[*self._encode, "--part", f"{number + 1}/{self.parts}"] for number in range(self.parts)]
        return {"begin": [self._begin], "encode": parts, **stages}


def _command(step: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"shards.{step}", *words]


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the words without some options and what follows them."""
    kept = []
    leave_out = False
    for word in words:
        if word.startswith("--"):
            leave_out = word.partition("=")[0] in names
        if not leave_out:
            kept.append(word)
    return kept


def _run_here(steps: Steps) -> int:
    workers = max(1, len(os.sched_getaffinity(0)) // steps.parts)
    logs = Path.cwd() / "jobs" / f"{_STAGE}-{secrets.token_hex(3)}" / "logs"
    status = 0
    for step, commands in steps.stages(workers=workers).items():
        if not status and len(commands) == 1:
            status = run_command(commands[0])
        elif not status:
            status = run_ranks(commands.__getitem__, nodes=steps.parts, tasks=1, logs=logs / step)
    return status


def _submit(call: Invocation, steps: Steps, resources: Resources) -> int:
    folder = Path.cwd() / "jobs" / f"{_STAGE}-{secrets.token_hex(3)}"
    launch = folder / LAUNCH
    call.record(launch)
    journal, snapshot = Journal(launch), take_snapshot(launch / "snapshots")
    jobs: list[str] = []
    stages = steps.stages()
    dependency = ""
    try:
        for step, commands in stages.items():
            token = f"nml-{secrets.token_hex(6)}"
            submission = Submission(
                stage=f"{_STAGE}-{step}",
                token=token,
                snapshot=str(snapshot),
                members=tuple(_members(folder, step, commands)),
                max_idle_attempts=resources.max_idle_attempts,
            )
            file = launch / f"{token}.json"
            ids = executor.submit(submission, resources, file, journal=journal, dependency=dependency)
            jobs += ids
            dependency = f"afterok:{ids[0].partition('_')[0]}"
    except BaseException:
        # Half of it in the queue would be found by nobody.
        cancel(jobs)
        raise
    arrays = dict.fromkeys(job.partition("_")[0] for job in jobs)
    told = ", ".join(f"{len(commands)} x {step}" for step, commands in stages.items())
    print(f"submitted {told} as jobs {', '.join(arrays)}")
    print(f"follow it: {command_line('status', folder)}")
    print(f"job: {folder}")
    return 0


def _members(folder: Path, step: str, commands: Sequence[Sequence[str]]) -> list[Member]:
    return [
        Member(
            name=f"{folder.name} {step}" + (f" {number}/{len(commands)}" if len(commands) > 1 else ""),
            argv=tuple(argv),
            record=str(folder / LAUNCH / "attempts"),
            cwd=str(Path.cwd()),
        )
        for number, argv in enumerate(commands, 1)
    ]


SHARDS = ShardsCommand(
    _STAGE,
    "shards.write",
    "Write a shard set as a job, or with --nodes N planned by one, packed by N and finished by one.",
    f"{PROG} shards -- --source digits --noise 0 0.2 --out data/shards/digits\n"
    f"  {PROG} shards --nodes 8 -- --source imagefolder:imagenet/train --noise 0.2 --out data/shards/in1k",
)
