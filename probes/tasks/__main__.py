"""``python -m probes.tasks``: the tasks there are, and preparing one for machines without network."""

from __future__ import annotations

from pathlib import Path

from nml.cli import Parser, run
from nml.errors import UserError
from probes.spec import split_spec
from probes.tasks.registry import DEFAULT_ROOT, TASKS, open_task
from probes.tasks.task import TaskRecord

EXAMPLES = """\
examples:
  python -m probes.tasks list
  python -m probes.tasks show cifar10
  python -m probes.tasks prepare cifar10 --root data/tasks
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.tasks", "List tasks, or fetch their data.", epilog=EXAMPLES, config=False
    )
    add = parser.add_argument
    add("command", type=str, choices=["list", "show", "prepare"], help="what to do")
    add("name", type=str, nargs="?", default=None, help="task to show or prepare")
    add("--root", type=str, default=str(DEFAULT_ROOT), help="folder of prepared tasks")
    return parser


def main() -> None:
    """Run one of the commands."""
    arguments = build_parser().parse_args()
    if arguments.command == "list":
        for plugin in TASKS.discover():
            record: TaskRecord = TASKS.load(plugin.name).record
            classes = f"{record.num_classes} classes" if record.num_classes else "your classes"
            print(f"{plugin.name:20} {record.modality:6} {classes:13} {record.metric:15} {record.source}")
        return
    if arguments.name is None:
        raise UserError(f"{arguments.command}: no task named", mend="see: python -m probes.tasks list")
    source = TASKS.load(split_spec(arguments.name).kind)
    if arguments.command == "show":
        _show(source.record)
        return
    root = Path(arguments.root)
    prepare = getattr(source, "prepare", None)
    if prepare is not None:
        prepare(root)
    task = open_task(arguments.name, root)
    print(f"{task.name}: {len(task.train.keys)} training samples, {len(task.classes)} classes")
    for evaluation in task.evaluations:
        print(f"  {evaluation.domain:3} {evaluation.name}: {len(evaluation.samples.keys)} samples")
    print(f"ready: {root / task.name}" if prepare else "ready: nothing to fetch")


def _show(record: TaskRecord) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in record.splits.items())
    for name, value in (
        ("task", record.name),
        ("modality", record.modality),
        ("classes", record.num_classes or "from your data"),
        ("metric", record.metric),
        ("splits", splits or "from your data"),
        ("OOD", ", ".join(record.ood) or "none"),
        ("source", record.source),
        ("revision", record.revision),
        ("licence", record.licence),
        ("note", record.note),
    ):
        if value:
            print(f"{name:9} {value}")


if __name__ == "__main__":
    run(main)
