"""Tasks by name."""

from __future__ import annotations

from pathlib import Path

from nml.registry import Registry
from nml.sources import SOURCES, find_task
from probes.spec import split_spec
from probes.tasks.checks import check_task
from probes.tasks.own_data import OwnDataTask
from probes.tasks.task import Task, TaskSource

TASKS = Registry("nml.tasks", kind="task", where="--task", listing="python -m probes.tasks list")
"""The registered tasks."""
DEFAULT_ROOT = Path("data/tasks")
"""Where data of tasks is kept unless told otherwise."""


def task_source(name: str) -> TaskSource:
    """Return the task of a name; without one, the source of that name makes a task of the user's own data.

    Raises:
        UserError: If neither is registered, or it does not load.
    """
    if find_task(TASKS, name).group == SOURCES.group:
        return OwnDataTask(name)
    source: TaskSource = TASKS.load(name)
    return source


def open_task(text: str, root: Path = DEFAULT_ROOT) -> Task:
    """Return the task a user named, for example ``digits`` or ``parquet:train.parquet,test.parquet``.

    Raises:
        UserError: If the task is unknown, its data missing, or its labels unusable.
    """
    spec = split_spec(text)
    task = task_source(spec.kind).open(spec, root)
    check_task(task)
    return task
