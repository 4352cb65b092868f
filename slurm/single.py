"""One command of another room as a job of its own: ``launch.py probes``, or ``shards`` on one node."""

from __future__ import annotations

import secrets
import shlex
import sys
from pathlib import Path

from nml import cli
from nml.errors import UserError
from slurm import executor
from slurm.cluster import Resources
from slurm.invocation import PROG, Invocation, command_line
from slurm.journal import Journal
from slurm.members import LAUNCH, Member, Submission
from slurm.partitions import check_fits
from slurm.pretraining import add_resource_options, find_cluster, resources_of
from slurm.rooms import check_command, check_probe_words
from slurm.snapshot import take_snapshot
from slurm.standin import run_command


class SingleCommand:
    """A subcommand that hands its words on to another room's command.

    Args:
        stage: Its stage, which is also the subcommand's name.
        module: The module it runs.
        description: What it does.
        example: A command line that works.
    """

    def __init__(self, stage: str, module: str, description: str, example: str) -> None:
        self.stage = stage
        self.module = module
        self.DESCRIPTION = description
        self.EXAMPLE = example

    def add_options(self, parser: cli.Parser) -> None:
        """Add the options that say where it runs; the room's own come after ``--``."""
        add_resource_options(parser)

    def run(self, call: Invocation) -> int:
        """Check the room's options, then run the command here or submit it."""
        argv = [sys.executable, "-m", self.module, *call.rest]
        check_command(argv)
        if self.stage == "probes":
            check_probe_words(call.rest)
        found = find_cluster(call.options.cluster)
        resources = resources_of(call.options, self.stage)
        if resources.nodes > 1 or resources.tasks > 1:
            raise UserError(f"{self.module} is one process", possible="--nodes 1 --gpus-per-node 0 or 1")
        folder = Path.cwd() / "jobs" / f"{self.stage}-{secrets.token_hex(3)}"
        if found.found:
            check_fits(resources)
            return self._submit(call, argv, folder, resources)
        if call.options.dry_run:
            print(f"# {shlex.join(argv)}")
            return 0
        print(f"{found.sentence}: it runs here", flush=True)
        return run_command(argv)

    def _submit(self, call: Invocation, argv: list[str], folder: Path, resources: Resources) -> int:
        launch = folder / LAUNCH
        if call.options.dry_run:
            submission = self._submission(argv, folder, "TOKEN", "SNAPSHOT", resources)
            print(executor.batch_text(submission, resources, launch / "TOKEN.json"), end="")
            return 0
        call.record(launch)
        token = f"nml-{secrets.token_hex(6)}"
        snapshot = take_snapshot(launch / "snapshots")
        submission = self._submission(argv, folder, token, str(snapshot), resources)
        [job] = executor.submit(submission, resources, launch / f"{token}.json", journal=Journal(launch))
        print(f"submitted job {job}; follow it: {command_line('logs', folder, '--follow')}")
        print(f"job: {folder}")
        return 0

    def _submission(
        self, argv: list[str], folder: Path, token: str, snapshot: str, resources: Resources
    ) -> Submission:
        member = Member(
            name=f"{self.stage} {folder.name}",
            argv=tuple(argv),
            record=str(folder / LAUNCH / "attempts"),
            cwd=str(Path.cwd()),
        )
        return Submission(
            stage=self.stage,
            token=token,
            snapshot=snapshot,
            members=(member,),
            max_idle_attempts=resources.max_idle_attempts,
        )


PROBES = SingleCommand(
    "probes",
    "probes.run",
    "Run probes as a job.",
    f"{PROG} probes -- --plugin lp,nmtune --checkpoint runs/quickstart-n20-seed0",
)
