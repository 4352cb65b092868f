"""Tasks: labelled data to probe on, in-domain and out-of-domain, each with a typed record."""

from probes.tasks.registry import TASKS, open_task
from probes.tasks.task import Evaluation, Task, TaskRecord, TaskSource

__all__ = ["TASKS", "Evaluation", "Task", "TaskRecord", "TaskSource", "open_task"]
