"""A sweep as a graph: what is to be run, what each part waits for, and what is there already.

    shards LEVEL  ->  pretrain RUN  ->  probes RUN TASK  ->  report

A part that is complete drops out, and with it the waiting for it. So does a run of which nothing is left but
all its rows, and the set that only such runs were trained on.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nml import layout
from nml.run_config import read_command
from slurm.members import LAUNCH, Member, Probe
from slurm.receipts import measured_command, missing_heads, missing_rows, read_ids, told_ids
from slurm.request import PretrainRequest
from slurm.study import PlannedSet, Study, Subject, SweepRequest

_WHILE_IT_TRAINS = {
    "probe": "; checkpoints that were kept are probed with -- --steps all",
    "memorisation": "",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One member of a stage.

    Attributes:
        stage: One of :data:`slurm.cluster.STAGES`.
        member: What to run.
        parents: Names of the members that have to be complete before.
        complete: Whether it is there already.
        by_rows: Whether it is, or heads of it are, because the rows are there of a run whose folder is gone.
        gone: Ids of rows that were measured of such a run and are not there any more.
        why: Of a run that is gone, why it is to be trained again.
    """

    stage: str
    member: Member
    parents: tuple[str, ...] = ()
    complete: bool = False
    by_rows: bool = False
    gone: frozenset[str] = frozenset()
    why: str = ""


def make_plan(study: Study, run_member: Callable[[PretrainRequest], Member]) -> list[Part]:
    """Return every part of a sweep, parents first.

    Args:
        study: What the user wants.
        run_member: Turns a run into a member, as ``launch.py pretrain`` does.
    """
    parts = _shard_parts(study)
    writers = {part.member.done: part.member.name for part in parts if part.member.done}
    runs: dict[Path, Part] = {}
    for run in study.runs():
        planned = study.set_of(run.shard_set)
        validation = study.set_of(str(run.resolved.validation))
        # A set is changed by each draw: it is read when the last one is in it.
        parents = {
            writers.get(str(run.set_file), ""): None,
            **{_writers(one)[-1]: None for one in (planned, validation) if one},
        }
        waits_for = tuple(filter(None, parents))
        runs[run.path] = Part("pretrain", run_member(run), waits_for, run.is_complete())
    there = read_ids(study.results)
    probes = [
        # One task after the other, each in the order of the runs: arrays then fit each other.
        _probe_part(arm, subject, tasks, runs[subject.run.path] if subject.run else None, there)
        for arm in study.arms
        for tasks in arm.task_groups
        for subject in arm.subjects()
    ]
    before = _from_rows([*parts, *runs.values()], probes)
    waiting = {name for part in probes if not part.complete for name in part.parents}
    # Runs that lack nothing but rows of their own.
    along = [
        part
        for part in before
        if part.stage == "pretrain" and not part.complete and part.member.name not in waiting
    ]
    return [*before, *probes, _report_part(study, [*probes, *along])]


def _from_rows(before: Sequence[Part], probes: Sequence[Part]) -> list[Part]:
    """Return sets and runs, those complete that nothing needs any more but rows that are there."""
    found: list[Part] = []
    followers: dict[str, list[Part]] = collections.defaultdict(list)
    for part in probes:
        for parent in part.parents:
            followers[parent].append(part)
    for part in reversed(before):
        needing = followers[part.member.name]
        if not part.complete and needing and all(one.complete and one.by_rows for one in needing):
            part = dataclasses.replace(part, complete=True, by_rows=True)
        elif part.stage == "pretrain" and not part.complete:
            part = dataclasses.replace(part, why=_why_again(needing))
        for parent in part.parents:
            followers[parent].append(part)
        found.append(part)
    return found[::-1]


def say_lost(parts: Sequence[Part]) -> None:
    """Print which runs are gone and need not be trained again, and which have to be."""
    if taken := sum(part.stage == "pretrain" and part.by_rows for part in parts):
        runs, them = ("run is gone, and is", "it") if taken == 1 else ("runs are gone, and are", "them")
        print(f"{taken} {runs} taken as done: the rows that were measured of {them} are complete")
    for run in parts:
        if run.why:
            print(f"{run.member.name} is gone and is trained again: {run.why}")


def say_too_late(study: Study, parts: Sequence[Part]) -> None:
    """Print what is asked of runs while they train that runs which are done were trained without."""
    complete = {part.member.done for part in parts if part.complete}
    probes = [part.member.probe for part in parts if part.member.probe]
    told = {probe.run: measured_command(probe.receipts) for probe in probes}
    for name, mend in _WHILE_IT_TRAINS.items():
        late = 0
        for run in study.runs():
            if getattr(run.options, name) and str(run.path / layout.DONE) in complete:
                kept = run.path / layout.CONFIG
                before = read_command(kept if kept.exists() else told.get(str(run.path), kept), mend="")
                late += before is not None and not before.get(name)
        if late:
            runs = "1 run that is" if late == 1 else f"{late} runs that are"
            print(f"--{name} comes too late for {runs} done{mend}")


def _why_again(probes: Sequence[Part]) -> str:
    """Return why a run is needed again of which something was measured; nothing of another."""
    if not any(part.by_rows or part.gone for part in probes):
        return ""
    # The one whose rows can tell first.
    wanted = min((part for part in probes if not part.complete), key=lambda part: not part.gone)
    if not wanted.gone:
        return f"{wanted.member.name} needs its weights"
    rows = "1 row" if len(wanted.gone) == 1 else f"{len(wanted.gone)} rows"
    return f"{wanted.member.name} lacks {rows}, first {min(wanted.gone)}"


def _shard_parts(study: Study) -> list[Part]:
    bundled = {run.set_file: run for run in study.runs() if run.set_file is not None}
    parts = []
    for file, run in bundled.items():
        member = _writing(study, f"shards {run.level}", run.shards_argv(), file)
        # The set is every sweep's that wants it, and so are the jobs that write it.
        record = study.base / "jobs" / f"shards-{file.parent.name}" / LAUNCH / "attempts"
        member = dataclasses.replace(member, record=str(record))
        parts.append(Part("shards", member, (), file.exists()))
    for planned in study.sets:
        present = planned.present()
        before: tuple[str, ...] = ()
        commands = [planned.argv(), *map(planned.draw_argv, planned.draws)]
        wanted = [{*planned.levels}, *({level} for level in planned.draws)]
        for name, argv, levels in zip(_writers(planned), commands, wanted, strict=True):
            parts.append(Part("shards", _writing(study, name, argv), before, present >= levels))
            before = (name,)
    return parts


def _writing(study: Study, name: str, argv: Sequence[str], done: Path | None = None) -> Member:
    """Return what writes a set, or a level, which has no file of its own that tells that it is there."""
    return Member(
        name=name,
        argv=tuple(argv),
        record=str(study.folder / LAUNCH / "attempts" / _slug(name.replace(" ", "-"))),
        done=None if done is None else str(done),
        cwd=str(study.base),
    )


def _writers(planned: PlannedSet) -> list[str]:
    """Return the names of the parts that write a set: the set itself, then each draw."""
    own = f"shards {Path(planned.out).name}"
    return [own, *(f"{own} {level}" for level in planned.draws)]


def _probe_part(
    arm: SweepRequest, subject: Subject, tasks: tuple[str, ...], parent: Part | None, there: set[str]
) -> Part:
    probe = Probe(
        results=str(arm.base / arm.results),
        run=subject.told,
        task=" ".join(tasks),
        heads=arm.plugins,
        receipts=str(arm.folder / LAUNCH / "receipts" / _receipts_name(arm, subject, tasks)),
    )
    lost = subject.run is not None and is_lost(subject.run.path)
    gone = missing_rows(probe, there) if lost else set[str]()
    if subject.run is None or layout.is_done(subject.run.path) or lost:
        probe = dataclasses.replace(probe, heads=missing_heads(probe, there, lost=lost))
    # A setting may be of any of the arm's heads: beside it all are asked for, and those measured stay.
    hyper = any(word.partition("=")[0] == "--hyper" for word in arm.probe_options)
    heads = arm.plugins if hyper else probe.heads
    argv = [sys.executable, "-m", "probes.run", "--plugin", ",".join(heads)]
    argv += [*subject.words, "--task", *tasks, *arm.probe_options]
    # Last, so that a config file among the user's words does not send the rows elsewhere.
    argv += ["--results", probe.results, "--receipt", str(told_ids(probe.receipts))]
    name = " ".join(filter(None, [subject.name, "" if arm.tasks_together else probe.task, arm.arm]))
    member = Member(
        name=f"probes {name}",
        argv=tuple(argv),
        record=str(arm.folder / LAUNCH / "attempts" / f"probes-{_slug(name)}"),
        cwd=str(arm.base),
        probe=probe,
    )
    return Part(
        "probes",
        member,
        (parent.member.name,) if parent else (),
        complete=not probe.heads,
        by_rows=lost and len(probe.heads) < len(arm.plugins),
        gone=frozenset(gone),
    )


def is_lost(run: Path) -> bool:
    """Return whether a run has never begun in its folder, or nothing is left of it."""
    return not (run / layout.CONFIG).exists() and not (run / layout.DONE).exists()


def _report_part(study: Study, measuring: Sequence[Part]) -> Part:
    out = study.folder / "report"
    member = Member(
        name="report",
        argv=(*(sys.executable, "-m", "probes.report"), *(str(study.results), "--out", str(out))),
        record=str(study.folder / LAUNCH / "attempts" / "report"),
        done=str(out / "report.html"),
        cwd=str(study.base),
        ends=str(study.folder),
    )
    complete = all(part.complete for part in measuring) and (out / "report.html").exists()
    return Part("report", member, tuple(part.member.name for part in measuring), complete)


def _receipts_name(arm: SweepRequest, subject: Subject, tasks: tuple[str, ...]) -> str:
    """Name what a probe's rows follow from, so that other options count as other results."""
    followed = (tasks[0] if len(tasks) == 1 else tasks, arm.probe_options)
    options = hashlib.sha256(repr(followed).encode()).hexdigest()[:8]
    named = (arm.arm or "all") if arm.tasks_together else tasks[0]
    return f"{_slug(subject.name)}-{_slug(named)}-{options}"


def _slug(text: str) -> str:
    """Return a text as a file name: tasks may be paths."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in text)[
        -100:
    ]
