"""The state of everything launched under a folder, a row a member.

Slurm is asked first, once for all members. What it has forgotten is told by the members' own
markers: what they wrote, and how their last attempt was closed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml import layout
from nml.errors import UserError
from nml.text_table import in_columns
from nml.untrusted import Untrusted, printable, read_object
from slurm import states
from slurm.attempt import CLOSE, OPEN, STALLED, newest_attempt, starts
from slurm.controller import TRIES, NoAnswer
from slurm.invocation import FILE as COMMAND
from slurm.invocation import command_line
from slurm.journal import Job, Journal
from slurm.local_attempt import LOCAL, is_running
from slurm.members import LAUNCH
from slurm.plan import make_plan
from slurm.pretraining import run_member
from slurm.progress import describe_seconds, read_progress
from slurm.registry import Registry
from slurm.standin import tail
from slurm.states import JobState
from slurm.submitting import CONTINUE
from slurm.sweep import SWEEP, load_study

# What Slurm's reasons mean to someone who waits. Others are shown as they are.
_REASONS = {
    "Dependency": "waits for an earlier part",
    "DependencyNeverSatisfied": "an earlier part failed",
    "Resources": "waits for free nodes",
    "Priority": "waits for jobs of higher priority",
    "BeginTime": "was requeued; Slurm starts it again within two minutes",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "PartitionNodeLimit": "asks for more nodes than its partition allows",
    "ReqNodeNotAvail": "waits for nodes that are down or reserved",
    "JobArrayTaskLimit": "waits for other members of its array (--array-parallelism)",
    "AssocMaxJobsLimit": "waits: the account runs as many jobs as it may",
    "QOSMaxJobsPerUserLimit": "waits: you run as many jobs as you may",
    "JobHeldUser": "held; release it: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "waits for licences",
    "Nodes required for job are DOWN": "waits for nodes that are down or reserved",
    "Reservation": "waits for its reservation to begin",
}

_ENDED_EARLY = {"CANCELLED": "was cancelled", "PREEMPTED": "was preempted"}
_FAILED = (
    "FAILED",
    "CANCELLED",
    "PREEMPTED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
_NOT_STARTED = ("CANCELLED", states.UNKNOWN)


class Launched(NamedTuple):
    """A member that was launched, or is to be.

    Attributes:
        stage: Its stage.
        name: Its name.
        record: Folder of its attempts.
        run: Its run folder, None for other stages.
        complete: Whether its result is there.
        logs: Folder of its logs.
        has_result: Whether a result tells that it is complete; otherwise its last attempt does.
        result: The file that is there once it has run, where that is one.
        parents: The members of the same sweep that have to be complete before, as ``STAGE NAME``.
        entry: Its newest job, whoever submitted it.
        why: Why it is to be done again, where more is known than that its result is gone.
        sweep: The sweep that it is a part of, as ``status`` takes it, where several are told of.
    """

    stage: str
    name: str
    record: Path
    run: Path | None
    complete: bool
    logs: Path
    has_result: bool = True
    result: Path | None = None
    parents: tuple[str, ...] = ()
    entry: Job | None = None
    why: str = ""
    sweep: str = ""

    @property
    def job(self) -> str:
        """The id of its newest job, empty where it has none."""
        return self.entry.id if self.entry else ""

    @property
    def full_name(self) -> str:
        """Stage and name, as a plan names its members."""
        return self.name if self.name == self.stage else f"{self.stage} {self.name}"


class Row(NamedTuple):
    """A row of the table, as text."""

    sweep: str
    stage: str
    name: str
    state: str
    job: str
    attempt: str
    step: str
    eta: str
    loss: str
    why: str


def launched_under(folder: Path) -> list[Launched]:
    """Return the members of a sweep's folder or a run's.

    Raises:
        UserError: If the folder is neither.
    """
    if (folder / SWEEP).exists():
        return _of_sweep(folder)
    if (folder / LAUNCH).is_dir() or (folder / layout.METRICS).exists():
        return _of_run(folder)
    raise UserError(f"{folder}: neither a sweep nor a run", mend="name a folder under sweeps/ or runs/")


def everything(base: Path) -> list[Path]:
    """Return the sweeps, and the runs that belong to none, under a folder."""
    sweeps = sorted(file.parent for file in base.glob(f"sweeps/*/{SWEEP}"))
    others = [
        file.parents[1]
        for kind in (layout.RUNS, "jobs")
        for file in sorted(base.glob(f"{kind}/*/{LAUNCH}/{COMMAND}"))
    ]
    return [*sweeps, *others]


def launched_at(named: str | None) -> tuple[dict[Path, list[Launched]], int]:
    """Return the members of a folder, or of all that was launched from the current one, by their folders.

    One whose records do not read hides none of the others: a line on standard error names it.

    Returns:
        The members, and how many folders do not read.

    Raises:
        UserError: If the folder that is named is neither a sweep nor a run.
        Untrusted: If its records do not read.
    """
    if named:
        return {Path(named): launched_under(Path(named))}, 0
    found: dict[Path, list[Launched]] = {}
    folders = everything(Path.cwd())
    for folder in folders:
        try:
            sweep = str(folder.relative_to(Path.cwd())) if (folder / SWEEP).exists() else ""
            found[folder] = [member._replace(sweep=sweep) for member in launched_under(folder)]
        except Untrusted as error:
            _leave_out(folder, f"{error.path or folder} does not read: {error}")
        except UserError as error:
            _leave_out(folder, str(error))
        except PermissionError as error:
            _leave_out(folder, f"{error.filename}: {error.strerror}")
    return found, len(folders) - len(found)


def _leave_out(folder: Path, why: str) -> None:
    print(printable(f"left out: {folder}: {why}"), file=sys.stderr)


def _of_run(folder: Path) -> list[Launched]:
    """Return what was launched for a run; of a command of several jobs, one for each of its members."""
    folder = folder.resolve()
    launch = folder / LAUNCH
    journal = Journal(launch)
    jobs: dict[str, Job | None] = {**journal.jobs()} or {folder.name: None}
    stage = next((line["stage"] for line in journal.lines()), "pretrain").partition("-")[0]
    parents: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for line in journal.lines():
        if line["event"] == "submitted" and len(jobs) > 1:
            # Each of its arrays waits for the one before it.
            parents |= dict.fromkeys(line["members"], before)
            before = tuple(f"{stage} {name}" for name in line["members"])
    return [
        Launched(
            stage=stage,
            name=name if len(jobs) > 1 else folder.name,
            record=launch / "attempts",
            run=folder if stage == "pretrain" else None,
            complete=layout.is_done(folder),
            logs=job.folder if job else launch,
            has_result=stage == "pretrain",
            parents=parents.get(name, ()),
            entry=job,
        )
        for name, job in jobs.items()
    ]


def _of_sweep(folder: Path) -> list[Launched]:
    launch = folder.resolve() / LAUNCH
    parts = make_plan(load_study(folder), run_member)
    registry = Registry(launch)
    jobs = registry.jobs_for(part.member for part in parts)
    going_on = registry.jobs().get(CONTINUE)
    launched = [
        Launched(
            stage=part.stage,
            name=part.member.name.removeprefix(f"{part.stage} "),
            record=Path(part.member.record),
            run=Path(part.member.progress).parent if part.member.progress else None,
            complete=part.complete,
            logs=jobs[part.member.name].folder if part.member.name in jobs else launch,
            result=Path(part.member.done) if part.member.done else None,
            parents=part.parents,
            entry=jobs.get(part.member.name),
            why=part.why,
        )
        for part in parts
    ]
    if going_on and not all(part.complete for part in parts):
        record = launch / "attempts" / CONTINUE
        launched.append(
            Launched(CONTINUE, CONTINUE, record, None, False, launch, has_result=False, entry=going_on)
        )
    return launched


def make_rows(members: Sequence[Launched], *, patient: bool = False) -> list[Row]:
    """Return the table's rows, asking Slurm once for all of them.

    Args:
        members: Whom to show.
        patient: Whether to ask a queue that does not answer again. Otherwise a line says so, and the
            rows tell what the members' own markers do.

    Raises:
        NoAnswer: If patience does not help.
    """
    jobs = [member.entry for member in members if member.entry]
    try:
        found = states.job_states(jobs, tries=TRIES if patient else 1)
    except NoAnswer as error:
        if patient:
            raise
        print(f"{error.what}; shown is what the runs themselves tell", file=sys.stderr)
        found = {}
    rows: list[Row] = []
    latest: dict[str, Row] = {}
    for member in members:
        failed = [
            f"{name} {_ENDED_EARLY.get(latest[name].state, 'failed')}"
            for name in member.parents
            if name in latest and latest[name].state in _FAILED
        ]
        known = found.get(member.entry) if member.entry else None
        row = _row(member, known or JobState(states.UNKNOWN), failed)
        rows.append(row)
        latest[member.full_name] = row
    return rows


def _row(member: Launched, job: JobState, failed: Sequence[str]) -> Row:
    state, why = _state(member, job)
    if failed and state in _NOT_STARTED and member.stage != "report":
        # Slurm took it out of the queue, and may have forgotten why.
        state, why = "CANCELLED", failed[0]
    elif failed and state == "TO DO" and member.stage != "report":
        why = why or failed[0]
    progress = read_progress(member.run) if member.run else None
    step = ""
    if progress and (progress.step or progress.total):
        step = f"{progress.step}/{progress.total}" if progress.total else str(progress.step)
    return Row(
        sweep=member.sweep,
        stage=member.stage,
        name=member.name,
        state=state,
        job=member.job,
        attempt=str(count_attempts(member)) if member.job else "",
        step=step,
        eta=describe_seconds(progress.eta_seconds) if progress and state == "RUNNING" else "",
        loss=f"{progress.loss:.4g}" if progress and progress.loss is not None else "",
        why=why,
    )


def count_attempts(member: Launched) -> int:
    """Return how often the member's newest job has been started."""
    return len(list(member.record.glob(f"{member.job}-*/{OPEN}")))


def _state(member: Launched, job: JobState) -> tuple[str, str]:
    """Return a member's state and why it is not further."""
    if member.job and job.active:
        return job.state, describe_reason(job.reason) or _trouble(member)
    if member.complete:
        return "COMPLETED", ""
    if not member.job:
        here = newest_attempt(member.record, LOCAL)
        if here and is_running(here):
            return "RUNNING", "with local processes"
        closed = last_close(member)
        if closed.get("outcome") == "failed":
            return "FAILED", closed["reason"]
        progress = read_progress(member.run) if member.run else None
        return ("STARTED", "with local processes") if progress and progress.step else ("TO DO", member.why)
    closed = last_close(member)
    if job.state == "PREEMPTED":
        again = command_line("resume", member.logs.parent)
        return job.state, f"Slurm cancelled it for a job of higher priority; submit it again: {again}"
    if job.state not in (states.UNKNOWN, "COMPLETED"):
        return job.state, closed.get("reason", "") or _last_words(member, job)
    # Slurm has forgotten the job, or it ended well: its markers know more.
    if closed.get("outcome") == "failed":
        return "FAILED", closed["reason"]
    if closed.get("outcome") == "done":
        # A part of a sweep has a result, which must have been removed since.
        if not member.has_result:
            return "COMPLETED", ""
        there = member.result is not None and member.result.exists()
        return "TO DO", member.why or ("parts are missing from it" if there else "its result is gone")
    return "UNKNOWN", closed.get("reason", "") or "Slurm has no word of it"


def describe_reason(reason: str) -> str:
    """Return what a reason of squeue means: a code, behind which there may be more, or a sentence."""
    code, _, more = reason.partition(",")
    if code not in _REASONS:
        return reason
    nodes = more.strip(" _") if more.strip(" _").startswith("UnavailableNodes") else ""
    return _REASONS[code] + (f" ({nodes})" if nodes else "")


def last_close(member: Launched) -> dict[str, Any]:
    """Return how the newest attempt of the member's newest job was closed, empty if it was not.

    Without a job, that is the newest attempt with local processes.
    """
    newest = newest_attempt(member.record, member.job or LOCAL)
    try:
        return read_object(newest / CLOSE, outcome=str, reason=str) if newest else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {"outcome": "", "reason": f"the record of its end cannot be read: {error}"}


def _trouble(member: Launched) -> str:
    """Return which ranks of a running member give no sign of life, or why they had to start again."""
    newest = newest_attempt(member.record, member.job)
    if not newest:
        return ""
    with contextlib.suppress(OSError, ValueError):
        ranks = read_object(newest / STALLED, ranks=dict)["ranks"]
        rank, (node, since, doing) = next(iter(ranks.items()))
        more = f" and {len(ranks) - 1} more" if len(ranks) > 1 else ""
        seconds = describe_seconds(max(0.0, time.time() - since))
        return f"rank {rank} on {node}{more}: no sign of life for {seconds} ({doing})"
    again = [one for one in starts(member.record, member.job) if "reason" in one]
    times = f"{len(again)} time{'s' if len(again) > 1 else ''}"
    return f"started again {times} in place: {again[-1]['reason']}" if again else ""


def _last_words(member: Launched, job: JobState) -> str:
    """Return why a job ended that could not record it: what its log says last."""
    if job.state == "CANCELLED":
        return ""
    log = member.logs / f"{member.job}_0_log.out"
    try:
        lines = [line.strip() for line in tail(log) if line.strip()]
    except OSError:
        return f"no record and no log of it: can {member.logs} be written on its node?"
    return lines[-1] if lines else f"it said nothing: its log {log} is empty; does a line of setup end it?"


def aligned(rows: Iterable[Row]) -> str:
    """Return rows as aligned text under a heading; empty columns are left out."""
    table = [Row(*Row._fields), *rows]
    kept = [column for column in zip(*table, strict=True) if any(column[1:])]
    return "\n".join(in_columns(list(zip(*kept, strict=True))))
