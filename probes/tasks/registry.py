"""Tasks by name."""

from __future__ import annotations

from pathlib import Path

from nml.registry import Registry
from probes.spec import split_spec
from probes.tasks.checks import check_task
from probes.tasks.task import Task, TaskSource

TASKS = Registry("nml.tasks", kind="task", where="--task", listing="python -m probes.tasks list")
DEFAULT_ROOT = Path("data/tasks")


def open_task(text: str, root: Path = DEFAULT_ROOT) -> Task:
    """Return the task a user named, for example ``digits`` or ``parquet:train.parquet,test.parquet``.

    Raises:
        UserError: If the task is unknown, its data missing, or its labels unusable.
    """
    spec = split_spec(text)
    source: TaskSource = TASKS.load(spec.kind)
    task = source.open(spec, root)
    check_task(task)
    return task
