"""``python -m probes.tasks``: list tasks, prepare one for machines without network, check one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nml.cli import Parser, refuse_unused, run
from nml.conformance import outcomes, show
from nml.errors import UserError
from nml.sources import SOURCES, find_task
from probes.spec import split_spec
from probes.tasks.conformance import CHECKS, Subject
from probes.tasks.counting import count_samples
from probes.tasks.prepared import PreparedTask
from probes.tasks.registry import DEFAULT_ROOT, TASKS, open_task, task_source
from probes.tasks.task import Task, TaskRecord, TaskSource

EXAMPLES = """\
examples:
  python -m probes.tasks list
      every task: what it is, its licence, what it takes on disk, and whether it is ready
  python -m probes.tasks show glue-sst2
      its splits, OOD sets, source and revision, what was checked and what to know
  python -m probes.tasks prepare cifar10 glue-sst2
      fetch from the Hugging Face hub into data/tasks; stopped, the same command goes on
  python -m probes.tasks prepare cifar10 --torchvision /data/torchvision
      read what torchvision has downloaded there; what it has not, it downloads
  python -m probes.tasks check parquet:train.parquet,test.parquet
      hold a task to its contract, check by check
  python -m probes.tasks count cifar10 parquet:train.parquet,test.parquet
      samples of each split and test set, as JSON, without reading any
"""
GROUPS = ("ready", "your own data", "placed by hand", "to prepare")


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.tasks",
        "List tasks, show what is known of one, fetch its data, or check it.",
        epilog=EXAMPLES,
        config=False,
    )
    add = parser.add_argument
    add("command", type=str, choices=["list", "show", "prepare", "check", "count"], help="what to do")
    add("names", type=str, nargs="*", default=[], help="tasks to show, prepare, check or count")
    add("--root", type=str, default=str(DEFAULT_ROOT), help="folder of prepared tasks")
    add(
        "--torchvision",
        type=str,
        default=None,
        help="prepare: take the data from this folder of torchvision's downloads, not from the hub",
    )
    return parser


def main() -> int:
    """Run one of the commands; return 1 if a check failed."""
    parser = build_parser()
    arguments = parser.parse_args()
    refuse_unused(
        parser, arguments, {"names": ("show", "prepare", "check", "count"), "torchvision": ("prepare",)}
    )
    root = Path(arguments.root)
    if arguments.command == "list":
        _list(root)
        return 0
    if not arguments.names:
        raise UserError(f"{arguments.command}: no task named", mend="see: python -m probes.tasks list")
    if arguments.command == "count":
        counts = {name: count_samples(name)._asdict() for name in arguments.names}
        print(json.dumps(counts, indent=1))
        return 0
    # All names first: a misspelt last one is told before the first is fetched.
    sources = {name: task_source(split_spec(name).kind) for name in arguments.names}
    failed = 0
    for name, source in sources.items():
        if arguments.command == "show":
            _show(source, root)
        elif arguments.command == "check":
            # What is missing is the user's to mend, not a promise broken.
            source.open(split_spec(name), root)
            owner = find_task(TASKS, split_spec(name).kind).owner
            failed |= show(outcomes(CHECKS, Subject(source, name, root)), f"{name} of {owner}")
        else:
            _prepare(name, source, root, arguments.torchvision)
    return failed


def _list(root: Path) -> None:
    sources = {name: task_source(name) for name in {*TASKS.names(), *SOURCES.names()}}
    width = max(map(len, sources))
    for group in GROUPS:
        members = [name for name in sources if _group(sources[name], root) == group]
        if not members:
            continue
        print(f"{group}:")
        for name in sorted(members):
            record = sources[name].record
            classes = f"{record.num_classes} classes" if record.num_classes else ""
            print(
                f"  {name:{width}}  {record.modality:8}  {classes:12} {record.metric:14} "
                f"{record.disk.partition(',')[0].partition(' (')[0]:10} {record.licence}".rstrip()
            )
    print(
        "\nmore of one: python -m probes.tasks show NAME      fetch it: python -m probes.tasks prepare NAME"
    )


def _group(source: TaskSource, root: Path) -> str:
    if isinstance(source, PreparedTask):
        return "ready" if source.is_prepared(root) else "to prepare"
    if not source.record.published:
        return "your own data"
    return "placed by hand" if "by hand" in source.record.source else "ready"


def _show(source: TaskSource, root: Path) -> None:
    record: TaskRecord = source.record
    splits = ", ".join(f"{name} {count}" for name, count in record.splits.items())
    for name, value in (
        ("task", record.name),
        ("state", _group(source, root)),
        ("modality", record.modality),
        ("target", record.target if record.published else "classification; target= names others"),
        ("classes", record.num_classes or ("none" if record.published else "from your data")),
        ("metric", record.metric),
        ("splits", splits or "from your data"),
        ("OOD", ", ".join(record.ood) or "shifts of the test samples"),
        ("source", record.source),
        ("revision", record.revision),
        ("licence", record.licence),
        ("disk", record.disk),
        ("checked", record.checked),
        ("note", record.note),
    ):
        if value:
            print(f"{name:9} {value}")
    if isinstance(source, PreparedTask):
        for part, how in source.by_hand().items():
            print(f"{'by hand':9} {part}: place {how} in {root / record.name / 'sources' / part}")


def _prepare(text: str, source: Any, root: Path, torchvision: str | None) -> None:
    name = source.record.name
    missing: dict[str, str] = {}
    if isinstance(source, PreparedTask):
        missing = source.prepare(root, torchvision=Path(torchvision).expanduser() if torchvision else None)
    elif torchvision:
        raise UserError(f"task {name}: nothing of it is in torchvision", mend="leave --torchvision out")
    task = open_task(text, root)
    print(f"{task.name}: {len(task.train.keys)} training samples, {len(task.classes)} classes")
    for evaluation in task.evaluations:
        print(f"  {evaluation.domain:3} {evaluation.name}: {len(evaluation.samples.keys)} samples")
    _compare(source.record, task)
    for part, reason in missing.items():
        print(f"warning: {name}: without {part}: {reason}", file=sys.stderr)
    print(f"ready: {root / name}" if isinstance(source, PreparedTask) else "ready: nothing to fetch")


def _compare(record: TaskRecord, task: Task) -> None:
    """Warn where the data is not what the record says: the source may have changed."""
    samples = {"train": task.train, "test": task.evaluations[0].samples}
    found = {f"{split} samples": len(part.keys) for split, part in samples.items()}
    known = {f"{split} samples": count for split, count in record.splits.items()}
    if record.num_classes:
        found["classes"], known["classes"] = len(task.classes), record.num_classes
    for what, count in found.items():
        if known.get(what, count) != count:
            print(f"warning: {record.name}: {count} {what}, its record says {known[what]}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
