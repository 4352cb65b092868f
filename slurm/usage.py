"""``launch.py usage``: node-, core- and GPU-hours of what was launched, useful or lost by cause."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nml import cli, layout
from nml.text_table import in_columns
from slurm import states
from slurm.controller import NoAnswer
from slurm.invocation import PROG, Invocation
from slurm.journal import Journal
from slurm.local_attempt import LOCAL
from slurm.progress import DOWN, describe_seconds, read_books
from slurm.spans import RUNNING, Span, accounted_spans, recorded_spans
from slurm.sweep import SWEEP
from slurm.table import Launched, launched_at
from slurm.verdict import DONE, FAILED

DESCRIPTION = "Count node-hours and GPU-hours: useful ones, and lost ones by cause."
EXAMPLE = f"{PROG} usage sweeps/sweep"
_UNITS = {"node_s": "node-h", "core_s": "core-h", "gpu_s": "GPU-h"}


@dataclasses.dataclass
class Account:
    """What something took, and what of it was of use.

    Attributes:
        attempts: Attempts.
        seconds: How long they lasted, in sum.
        node_s, core_s, gpu_s: The same times the nodes, cores and GPUs that they had.
        useful: The useful part of ``node_s``.
        lost: The rest of ``node_s`` by cause.
        requeued_s: How long it waited in the queue between its attempts, with no node.
        sources: What it was counted by.
        unclosed: Attempts of which no end is on record.
    """

    attempts: int = 0
    seconds: float = 0.0
    node_s: float = 0.0
    core_s: float = 0.0
    gpu_s: float = 0.0
    useful: float = 0.0
    lost: dict[str, float] = dataclasses.field(default_factory=dict)
    requeued_s: float = 0.0
    sources: tuple[str, ...] = ()
    unclosed: int = 0

    def add(self, other: Account) -> None:
        """Add another's."""
        for name in ("attempts", "seconds", *_UNITS, "useful", "requeued_s", "unclosed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cause, seconds in other.lost.items():
            self.lost[cause] = self.lost.get(cause, 0.0) + seconds
        self.sources = tuple(dict.fromkeys([*self.sources, *other.sources]))

    def as_json(self) -> dict[str, Any]:
        """Return it in hours; useful and lost ones of each unit add up to all of them."""
        shares = {"useful": self.useful, **self.lost}
        return {
            "attempts": self.attempts,
            "hours": round(self.seconds / 3600, 6),
            **{
                f"{unit.removesuffix('_s')}_hours": {
                    "all": round(getattr(self, unit) / 3600, 6),
                    **{
                        name: round(getattr(self, unit) / 3600 * seconds / (self.node_s or 1.0), 6)
                        for name, seconds in shares.items()
                    },
                }
                for unit in _UNITS
            },
            "requeued_hours": round(self.requeued_s / 3600, 6),
            "counted_by": list(self.sources),
            "unclosed_attempts": self.unclosed,
        }


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``usage``."""
    parser.add_argument(
        "folder", nargs="?", type=str, default=None, help="a sweep or run (default: all here)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(call: Invocation) -> int:
    """Print the accounts."""
    launched, unread = launched_at(call.options.folder)
    accounts = _accounts(dict.fromkeys(one for members in launched.values() for one in members))
    report = _report(launched, accounts)
    print(json.dumps(report.as_json(), indent=1) if call.options.json else report.as_text())
    return 1 if unread else 0


def _accounts(members: Iterable[Launched]) -> dict[Launched, Account]:
    """Return what each part took; Slurm is asked once for all of them."""
    jobs = _jobs(members)
    every = {job: known for found in jobs.values() for job, known in found.items()}
    since = min((when for when, _ in every.values()), default=0.0)
    counted = accounted_spans({job: place for job, (_, place) in every.items()}, since)
    try:
        # Whatever ran before the newest job of a part has ended.
        newest = [member.entry for member in jobs if member.entry and member.entry.id not in counted]
        known = states.job_states(newest, tries=1)
    except NoAnswer:
        known = {}
    running = [job.id for job, state in known.items() if state.active and state.state != "PENDING"]
    accounts = {}
    for member, own in jobs.items():
        signs = [member.run / layout.METRICS] if member.run else []
        told = [span for span in recorded_spans(member.record, running, signs) if span.job in {LOCAL, *own}]
        spare = {span.job: span.spare for span in told}
        by_accounting = [
            span._replace(spare=spare.get(job, 0)) for job in own for span in counted.get(job, ())
        ]
        spans = by_accounting + [span for span in told if span.job not in counted]
        sources = ["accounting"] * bool(by_accounting) + ["records"] * (len(spans) > len(by_accounting))
        accounts[member] = _account(member, spans, sources)
    return accounts


def _jobs(members: Iterable[Launched]) -> dict[Launched, dict[str, tuple[float, Path]]]:
    """Return every job of each part, when it was submitted, and the folder that it was launched from."""
    lines = functools.cache(lambda folder: Journal(folder).lines())
    found: dict[Launched, dict[str, tuple[float, Path]]] = {}
    records = Counter(member.record for member in members)
    for member in members:
        own = found.setdefault(member, {})
        # Whoever else submitted it has told the folder that it belongs to.
        for folder in dict.fromkeys([member.record.parent, member.logs]):
            for line in lines(folder):
                if line["event"] == "submitted":
                    for name, job in zip(line["members"], line["jobs"], strict=True):
                        if job == member.job or name.removeprefix(f"{member.stage} ") == member.name:
                            own[job] = float(line["time"]), Path(line.get("folder", folder))
        # Those of earlier versions stand in the journals of sweeps alone.
        for attempt in member.record.glob("*-*") if records[member.record] == 1 else ():
            job = attempt.name.rpartition("-")[0]
            if job != LOCAL:
                own.setdefault(job, (attempt.stat().st_mtime, member.logs))
    return found


def _account(member: Launched, spans: Sequence[Span], sources: list[str]) -> Account:
    books = read_books(member.run) if member.run else {}
    own = Account(attempts=len(spans), sources=tuple(sources))
    own.unclosed = sum(not span.closed for span in spans)
    for span in spans:
        own.seconds += span.seconds
        own.node_s += span.seconds * span.nodes
        own.core_s += span.seconds * span.cores
        own.gpu_s += span.seconds * span.gpus
    own.requeued_s = sum(
        max(0.0, after.began - before.ended)
        for before, after in itertools.pairwise(spans)
        if before.job == after.job != LOCAL
    )
    # Between attempts nobody held a node.
    claimed = sum(seconds for cause, seconds in books.items() if cause != DOWN)
    if claimed and not spans:
        own.seconds = own.node_s = claimed
        own.sources = ("metrics",)
    spare = sum(span.seconds * span.spare for span in spans)
    if claimed:
        # The books are of the whole run, by the clock of its ranks; what they do not claim passed before the
        # ranks ran, from a loss until they ran again, and after their end.
        books = {cause: seconds for cause, seconds in books.items() if cause != DOWN}
        books["launching"] = max(0.0, own.seconds - claimed)
        whole = sum(books.values())
        parts = {cause: (own.node_s - spare) * seconds / whole for cause, seconds in books.items()}
    else:
        parts = {}
        for span in spans:
            # A command without a checkpoint starts over.
            cause = {DONE: "useful", RUNNING: "useful", FAILED: "failed"}.get(span.outcome, "redone")
            parts[cause] = parts.get(cause, 0.0) + span.seconds * (span.nodes - span.spare)
    parts["spare"] = spare
    own.useful = parts.pop("useful", 0.0)
    own.lost = {cause: seconds for cause, seconds in parts.items() if seconds}
    return own


@dataclasses.dataclass
class _Report:
    """Accounts of parts, runs and sweeps, and of all of it; what two sweeps share is counted once there."""

    parts: list[tuple[Launched, str, Account]]
    runs: dict[str, Account]
    sweeps: dict[str, Account]
    total: Account

    def as_json(self) -> dict[str, Any]:
        return {
            "parts": [
                {"stage": member.stage, "name": member.name, "run": run, **account.as_json()}
                for member, run, account in self.parts
            ],
            "runs": {name: account.as_json() for name, account in self.runs.items()},
            "sweeps": {name: account.as_json() for name, account in self.sweeps.items()},
            "total": self.total.as_json(),
        }

    def as_text(self) -> str:
        heading = ["stage", "name", "attempts", *_UNITS.values(), "useful", "lost to", "requeued"]
        rows = [[member.stage, member.name, *_cells(account)] for member, _, account in self.parts]
        sums = {"run": self.runs, "sweep": self.sweeps}
        rows += [
            [kind, name, *_cells(account)] for kind, own in sums.items() for name, account in own.items()
        ]
        rows.append(["all", "", *_cells(self.total)])
        lines = in_columns([heading, *rows])
        by = {
            "accounting": "Slurm's accounting",
            "records": "the records of the attempts",
            "metrics": "the books of runs that have no record, which do not tell cores and GPUs",
        }
        if self.total.sources:
            lines.append("counted by " + ", ".join(by[one] for one in self.total.sources))
        if self.total.unclosed:
            lines.append(f"no end is on record of {self.total.unclosed} attempts: their last sign counts")
        return "\n".join(lines)


def _report(launched: dict[Path, list[Launched]], accounts: dict[Launched, Account]) -> _Report:
    runs: dict[str, Account] = {}
    for member, account in accounts.items():
        if name := _run_of(member):
            runs.setdefault(name, Account()).add(account)
    sweeps = {
        folder.name: _sum(accounts[member] for member in members)
        for folder, members in launched.items()
        if (folder / SWEEP).exists()
    }
    parts = [(member, _run_of(member), account) for member, account in accounts.items()]
    return _Report(parts, runs, sweeps, _sum(accounts.values()))


def _run_of(member: Launched) -> str:
    """Return the run that a part trains or measures, or nothing."""
    if member.run:
        return member.run.name
    # A probe is called by its run and its task.
    return member.name.partition(" ")[0] if member.stage == "probes" and member.parents else ""


def _sum(accounts: Iterable[Account]) -> Account:
    whole = Account()
    for account in accounts:
        whole.add(account)
    return whole


def _cells(account: Account) -> list[str]:
    shares = sorted(account.lost.items(), key=lambda item: -item[1])
    named = [f"{cause} {_percent(seconds, account)}" for cause, seconds in shares]
    return [
        str(account.attempts),
        *(f"{getattr(account, unit) / 3600:.3f}" for unit in _UNITS),
        _percent(account.useful, account) if account.node_s else "",
        ", ".join(text for text in named if not text.endswith(" 0%")),
        describe_seconds(account.requeued_s) if account.requeued_s else "",
    ]


def _percent(seconds: float, account: Account) -> str:
    return f"{seconds / account.node_s:.0%}" if account.node_s else ""
