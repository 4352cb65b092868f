"""``launch.py doctor``: what a long job would fail of, found by a short one on the same nodes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nml import cli
from nml.errors import UserError, some
from nml.files import write_json
from nml.locking import look_again
from nml.text_table import in_columns
from nml.untrusted import printable, read_object
from slurm import executor, states
from slurm.cluster import Resources
from slurm.controller import answer, cancel
from slurm.invocation import PROG, Invocation
from slurm.journal import Journal
from slurm.machine import gpus_of_ranks
from slurm.members import LAUNCH, Member, Submission
from slurm.node_checks import ASKED, NOTE, WRONG, Check
from slurm.partitions import check_fits, show_partitions
from slurm.pretraining import add_resource_options, find_cluster, resources_of
from slurm.snapshot import take_snapshot
from slurm.standin import run_ranks
from slurm.table import launched_under, make_rows

DESCRIPTION = "Look for what a long job would fail of, by a short one on as many nodes."
EXAMPLE = f"{PROG} doctor --nodes 2 --gpus-per-node 8"
_DISTRIBUTION = "noisy-model-learning"
_LIMIT = "10"
_POLL_SECONDS = 1.0
# Of the environment that was launched from, what trainings heed.
_HEEDED = re.compile(r"(NCCL|GLOO|CUDA|HF|TORCH|OMP|MKL|UCX|FI|WANDB)_\w+|LD_LIBRARY_PATH")


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--wait-minutes", type=float, default=15.0, help="how long to wait for the job")
    add_resource_options(parser)


def run(call: Invocation) -> int:
    """Look, print a line a finding, and return whether something is wrong."""
    options = call.options
    found = find_cluster(options.cluster)
    resources = resources_of(
        options, time=options.time or _LIMIT, signal_delay_s=30, spare_nodes=0, max_idle_attempts=1
    )
    member = _member(Path.cwd() / "jobs" / f"doctor-{secrets.token_hex(3)}")
    folder = Path(member.argv[-1])
    launch = folder / LAUNCH
    if not options.wait_minutes > 0:
        raise UserError(f"--wait-minutes {options.wait_minutes:g}: not a possible value", possible="above 0")
    if found.found:
        check_fits(resources)
    if options.dry_run:
        if found.found:
            submission = _submission(member, resources, "SNAPSHOT", "TOKEN")
            print(executor.batch_text(submission, resources, launch / "TOKEN.json"), end="")
        return 0
    here = os.uname().nodename
    where = [(here, check) for check in _checks_here(resources, slurm=found.found)]
    write_json(folder / ASKED, _asked(resources, slurm=found.found))
    job = ""
    try:
        if found.found:
            call.record(launch)
            job, failure = _run_job(member, resources, launch, options.wait_minutes)
        else:
            failure = _run_here(member, resources, folder)
        reports = list(_reports(folder))
    finally:
        if not job:
            _remove(folder)
    where += [(node, check) for node, checks in reports for check in checks]
    world = resources.nodes * resources.tasks
    if not failure and len(reports) < world:
        failure = f"{len(reports)} of {world} ranks reported: do all nodes see {folder}?"
    if failure:
        where.append((f"job {job}" if job else here, Check("job", WRONG, failure)))
    wrong = any(check.state == WRONG for _, check in where)
    lines = _gathered(where)
    if options.json:
        told = [{"check": name, "state": state, "where": at, "text": text} for name, state, at, text in lines]
        print(json.dumps({"ok": not wrong, "job": job, "checks": told}, indent=1))
    else:
        print("\n".join(in_columns([[state, name, some(at, 4), text] for name, state, at, text in lines])))
    if job and not wrong:
        _remove(folder)
    elif job and not options.json:
        print(f"job: {folder}")
    return int(wrong)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def _member(folder: Path) -> Member:
    return Member(
        name=f"doctor {folder.name}",
        argv=(sys.executable, "-m", "slurm.node_checks", str(folder)),
        record=str(folder / LAUNCH / "attempts"),
        distributed=True,
        cwd=str(Path.cwd()),
    )


def _submission(member: Member, resources: Resources, snapshot: str, token: str) -> Submission:
    return Submission(
        stage="doctor",
        token=token,
        snapshot=snapshot,
        members=(member,),
        max_idle_attempts=resources.max_idle_attempts,
    )


def _asked(resources: Resources, *, slurm: bool) -> dict[str, Any]:
    least = re.search(r"(\d+)\.(\d+)", _metadata("Requires-Python")) or re.search("(3)()", "3")
    assert least is not None
    return {
        "cwd": str(Path.cwd()),
        "gpus": resources.gpus_per_node,
        # The stand-in shows each rank one GPU.
        "one_each": not slurm,
        "slurm": slurm,
        "inside": bool(resources.container),
        "least_python": [int(part or 0) for part in least.groups()],
        "packages": dict(_packages()),
        "variables": sorted({*resources.env, *filter(_HEEDED.fullmatch, os.environ)}),
    }


def _metadata(field: str) -> str:
    try:
        return importlib.metadata.metadata(_DISTRIBUTION)[field] or ""
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return ""


def _packages() -> Iterator[tuple[str, str]]:
    """Yield what this project needs and has here, with versions."""
    try:
        wanted = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        wanted = ["torch", "torchvision", "timm", "numpy", "submitit"]
    for line in wanted:
        name = re.match(r"[\w.-]+", line)
        if name and ";" not in line:
            try:
                yield name[0], importlib.metadata.version(name[0])
            except importlib.metadata.PackageNotFoundError:
                continue


def _checks_here(resources: Resources, *, slurm: bool) -> Iterator[Check]:
    """Look at what can be seen from here: traps of the environment and of the cluster."""
    if not slurm:
        return
    for name in sorted(os.environ):
        if name in ("SBATCH_EXPORT", "SLURM_EXPORT_ENV"):
            text = f"{name}={os.environ[name]}: jobs have what env: and setup: give, not your environment"
            yield Check("export", NOTE, text)
        elif name.startswith("SBATCH_"):
            # sbatch believes its environment before the lines of a script.
            yield Check("sbatch", NOTE, f"{name}={os.environ[name]} overrules what the launcher asks for")
    for name in ("srun", "sbatch", "squeue", "scontrol", "scancel"):
        if shutil.which(name) is None:
            yield Check("tools", WRONG, f"{name} is not on the PATH")
    if answer(["sacct", "--jobs=1"]).returncode:
        yield Check("accounting", NOTE, "there is none; states and hours are told by the runs' own records")
    for partition in show_partitions():
        chosen = partition.name in resources.partition.split(",") or (
            not resources.partition and partition.default
        )
        if chosen and partition.cancels:
            text = f"partition {partition.name} cancels jobs for others: resume submits them again"
            yield Check("preemption", NOTE, text)


def _run_job(member: Member, resources: Resources, launch: Path, minutes: float) -> tuple[str, str]:
    """Submit the job and wait for its end; return its id and why it did not end well."""
    token = f"nml-{secrets.token_hex(6)}"
    # What it says of the code is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        snapshot = take_snapshot(launch / "snapshots")
    submission = _submission(member, resources, str(snapshot), token)
    [job] = executor.submit(submission, resources, launch / f"{token}.json", journal=Journal(launch))
    deadline = time.monotonic() + minutes * 60
    try:
        while True:
            [row] = make_rows(launched_under(launch.parent), patient=True)
            if not states.JobState(row.state).active:
                return job, "" if row.state == "COMPLETED" else f"{row.state}: {row.why}"
            if time.monotonic() > deadline:
                return job, f"{row.state} after {minutes:g} minutes: {row.why or 'it does not end'}"
            time.sleep(_POLL_SECONDS)
    finally:
        cancel([job])


def _run_here(member: Member, resources: Resources, folder: Path) -> str:
    world = resources.nodes * resources.tasks
    status = run_ranks(
        member.argv,
        nodes=resources.nodes,
        tasks=resources.tasks,
        logs=folder / "logs",
        gpus=gpus_of_ranks(world, wanted=resources.gpus_per_node > 0),
        extra=resources.env,
    )
    return f"exit status {status}" if status else ""


def _reports(folder: Path) -> Iterator[tuple[str, list[Check]]]:
    """Yield what each rank found, with its node."""
    look_again(folder)
    for file in sorted(folder.glob("rank-*.json")):
        try:
            told = read_object(file, node=str, checks=list)
            checks = [Check(*map(printable, map(str, check))) for check in told["checks"]]
        except (OSError, ValueError, TypeError) as error:
            yield file.stem, [Check("report", WRONG, f"{file.name} does not read: {error}")]
        else:
            yield printable(told["node"]), checks


def _gathered(where: Iterable[tuple[str, Check]]) -> list[tuple[str, str, list[str], str]]:
    """Return the findings in the order they came, those that say the same of several nodes once."""
    found: dict[Check, list[str]] = {}
    for node, check in where:
        if node not in found.setdefault(check, []):
            found[check].append(node)
    order = {name: index for index, name in enumerate(dict.fromkeys(check.name for check in found))}
    rows = sorted(found.items(), key=lambda item: order[item[0].name])
    return [(check.name, check.state, nodes, check.text) for check, nodes in rows]
