"""``launch.py pretrain``: one run, on Slurm or on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nml import cli, layout
from nml.errors import UserError
from nml.files import write_bytes
from nml.locking import held_alone
from nml.recipe_files import DEFAULT
from nml.run_options import RunOptions
from slurm import executor
from slurm.cluster import DEFAULT_TIME, Resources, load_resources
from slurm.cores import fit_loaders, loader_workers
from slurm.invocation import FILE as COMMAND
from slurm.invocation import PROG, Invocation, command_line
from slurm.journal import Journal
from slurm.local_attempt import attempt_here
from slurm.machine import Detection, detect_slurm, gpus_of_ranks
from slurm.members import LAUNCH, Member, Submission
from slurm.partitions import check_fits
from slurm.registry import BUSY, Registry, nothing_left_if_refused
from slurm.request import PretrainRequest
from slurm.rooms import check_command, check_probed, check_probes, options_of, probed
from slurm.same_run import check_same_run, check_same_words, submitted_member
from slurm.sbatch_words import parse_gpus, parse_options
from slurm.snapshot import take_snapshot
from slurm.standin import run_command, run_ranks

DESCRIPTION = "Pre-train one encoder on one noise level."
EXAMPLE = f"{PROG} pretrain --noise 0.2 --nodes 8"

Where = Literal["auto", "slurm", "local"]


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``pretrain``."""
    parser.add_argument("--recipe", type=str, default=DEFAULT, help="name under recipes/, or a YAML file")
    cli.add_options(parser, RunOptions)
    add_resource_options(parser)


def add_resource_options(parser: cli.Parser) -> None:
    """Add the options that say where a job runs and what it asks for."""
    parser.add_argument("--cluster", type=Where, default="auto", help="auto: Slurm if a controller answers")
    parser.add_argument(
        "--cluster-file", type=str, default=None, help="YAML of cluster defaults, or an example's name"
    )
    parser.add_argument("--nodes", type=int, default=None, help="how many nodes (default: 1)")
    parser.add_argument(
        "--gpus-per-node",
        type=str,
        default=None,
        help="GPUs and ranks a node: 4 or a100:4 (default: 0, CPU)",
    )
    parser.add_argument(
        "--cpus-per-task",
        type=int,
        default=None,
        help="cores of each rank (default: one, and one for each loader worker)",
    )
    parser.add_argument("--mem-gb", type=float, default=None, help="memory a node (default: the cluster's)")
    parser.add_argument(
        "--time",
        type=str,
        default=None,
        help=f"time limit as sbatch reads it: 90 (minutes), 12:00:00, 2-00 (default: {DEFAULT_TIME})",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", type=str, default=None, help="as sbatch takes it")
    parser.add_argument(
        "--sbatch",
        nargs="+",
        type=str,
        default=None,
        metavar="KEY=VALUE",
        help="further options of sbatch: reservation=maint licenses=matlab mail-type=END",
    )
    parser.add_argument(
        "--after", type=str, default=None, help="jobs that must have ended well before: 12,13 (afterany:12)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and the batch script, do nothing"
    )


def resources_of(
    options: Any, stage: str = "pretrain", *, cores: int | None = None, **more: Any
) -> Resources:
    """Return what the options ask for in a stage, over the cluster file and the defaults.

    Args:
        options: The parsed options.
        stage: The stage.
        cores: Of a rank, where neither the options nor the cluster file say.
        more: Fields that a command gives itself.
    """
    names = (
        "nodes",
        "cpus_per_task",
        "mem_gb",
        "time",
        "partition",
        "account",
        "qos",
        "constraint",
        "after",
    )
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if options.gpus_per_node is not None:
        given |= parse_gpus(options.gpus_per_node)
    if options.sbatch:
        given["sbatch"] = parse_options(options.sbatch)
    return load_resources(options.cluster_file, given | more, stage, cores=cores)


def find_cluster(where: Where) -> Detection:
    """Return whether to submit to Slurm, as asked for and as found.

    Raises:
        UserError: If Slurm was asked for and does not answer.
    """
    if where == "local":
        return Detection(False, "", asked=False)
    found = detect_slurm()
    if where == "slurm" and not found.found:
        raise UserError(f"--cluster slurm: {found.reason}", mend="run on a login node, or --cluster local")
    return found


def run(call: Invocation) -> int:
    """Check the request, write the bundled shards if needed, and run or submit it."""
    options = call.options
    request = PretrainRequest(
        options=RunOptions(**cli.given_options(options, RunOptions)),
        recipe=options.recipe,
        overrides=call.overrides,
    )
    request.check()
    check_probed(request.options.probe)
    if request.options.probe:
        check_probes([probed(text)[0] for text in request.options.probe])
    command = check_command(request.argv())
    check_same_run(request, command, mend="name another --run-dir, or remove that one")
    found = find_cluster(options.cluster)
    resources, workers = fit_loaders(
        {options.recipe: loader_workers(command)},
        call.overrides,
        on_slurm=found.found,
        ask=lambda cores: resources_of(options, cores=cores),
    )
    request = dataclasses.replace(request, workers=workers.get(options.recipe))
    if found.found:
        check_fits(resources)
        check_same_words(run_member(request), request.path / LAUNCH)
    if options.dry_run:
        return show_plan(request, resources, found)
    gpus: list[str] = []
    if not found.found:
        gpus = announce_standin(found, resources)
    status = write_shards(request)
    if status:
        return status
    launch = request.path / LAUNCH
    with held_alone(launch, busy=BUSY):
        if found.found:
            with nothing_left_if_refused(launch):
                call.record(launch)
                return submit_run(request, resources)
        return run_locally(call, request, resources, gpus)


def announce_standin(found: Detection, resources: Resources, *, jobs: int = 1) -> list[str]:
    """Say in one line what stands in for the cluster, for each of so many runs at once.

    Returns:
        A GPU for each rank of one run, or none.
    """
    world = resources.nodes * resources.tasks
    gpus = gpus_of_ranks(world, wanted=resources.gpus_per_node > 0)
    count = f"{world} local process{'es stand' if world > 1 else ' stands'} in"
    where = ", one GPU each" if gpus else ""
    where += f", {jobs} parts at once" if jobs > 1 else ""
    print(f"{found.sentence}: {count}{where}", flush=True)
    return gpus


def run_locally(call: Invocation, request: PretrainRequest, resources: Resources, gpus: Sequence[str]) -> int:
    """Run a request with local processes and return its exit status."""
    kept = request.path / LAUNCH / COMMAND
    before = kept.read_bytes() if kept.exists() else None
    call.record(kept.parent)
    logs = request.path / "logs"
    # Rank 0 ends by printing the path of the run.
    status = attempt_here(
        kept.parent / "attempts",
        lambda: run_ranks(
            request.argv(),
            nodes=resources.nodes,
            tasks=resources.tasks,
            logs=logs,
            gpus=gpus,
            extra=resources.env,
        ),
        gpus=len(gpus),
    )
    if status == cli.USER_ERROR_STATUS:
        # Refused: a run that was there is resumed as it was, and one that was not leaves nothing.
        if before is not None:
            write_bytes(kept, before)
        elif not (request.path / layout.CONFIG).exists():
            shutil.rmtree(kept.parent)
            shutil.rmtree(logs)
            with contextlib.suppress(OSError):
                request.path.rmdir()
                request.path.parent.rmdir()
    return status


def write_shards(request: PretrainRequest) -> int:
    """Write the bundled set where no data was named and it is not there yet."""
    if request.notice():
        print(request.notice(), flush=True)
    return run_command(request.shards_argv()) if request.writes_shards() else 0


def show_plan(request: PretrainRequest, resources: Resources, found: Detection) -> int:
    """Print what would be done."""
    if request.writes_shards():
        print("# " + shlex.join(request.shards_argv()))
    print("# " + shlex.join(request.argv()))
    if found.found:
        folder = request.path / LAUNCH
        submission = run_submission(request, resources, snapshot="SNAPSHOT", token="TOKEN")  # noqa: S106
        print(executor.batch_text(submission, resources, folder / "TOKEN.json"), end="")
    else:
        print(f"# {found.sentence}: {resources.nodes * resources.tasks} local processes would stand in")
    print(f"run: {request.path}")
    return 0


def run_submission(
    request: PretrainRequest, resources: Resources, *, snapshot: str, token: str
) -> Submission:
    """Return a request as a submission of one member."""
    return Submission(
        stage=f"pretrain-{request.level}",
        token=token,
        snapshot=snapshot,
        members=(run_member(request),),
        max_idle_attempts=resources.max_idle_attempts,
    )


def run_member(request: PretrainRequest) -> Member:
    """Return a request as the member of a submission."""
    return Member(
        name=f"pretrain {request.path.name}",
        argv=tuple(request.argv()),
        record=str(request.path / LAUNCH / "attempts"),
        done=str(request.path / layout.DONE),
        progress=str(request.path / layout.CHECKPOINTS),
        distributed=True,
        cwd=str(request.base),
    )


def submit_run(request: PretrainRequest, resources: Resources) -> int:
    """Submit a request to Slurm, unless it is done or in the queue."""
    folder = request.path / LAUNCH
    registry = Registry(folder)
    member = run_member(request)
    if job := registry.active([member]).get(member.name):
        print(f"already submitted as job {job.id}" if job.is_own else f"runs as job {job.id} of {job.user}")
    elif request.is_complete() and _as_asked(registry, member):
        print("already finished")
    else:
        submitted = _submit(request, resources, folder, registry)
        print(f"submitted job {submitted}: {resources.nodes} nodes x {resources.tasks} ranks")
        print(f"follow it: {command_line('logs', request.path, '--follow')}")
    print(f"run: {request.path}")
    return 0


def _submit(request: PretrainRequest, resources: Resources, folder: Path, journal: Journal) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    snapshot = take_snapshot(folder / "snapshots")
    token = f"nml-{secrets.token_hex(6)}"
    submission = run_submission(request, resources, snapshot=str(snapshot), token=token)
    [job] = executor.submit(submission, resources, folder / f"{token}.json", journal=journal)
    return job


def _as_asked(registry: Registry, member: Member) -> bool:
    """Whether the run was submitted as it is asked for now."""
    job = registry.jobs_for([member]).get(member.name)
    before = None if job is None else submitted_member(job, member.name)
    # Otherwise it was run with local processes.
    return before is None or options_of(before.argv) == options_of(member.argv)
