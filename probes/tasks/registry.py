"""Tasks by name, and what of them would make results wrong without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nml.errors import UserError, some
from nml.labels import Target, check_numbers
from nml.registry import Registry
from nml.sources import SOURCES, find_task
from probes.samples import SampleSet
from probes.spec import split_spec
from probes.tasks.own_data import OwnDataTask
from probes.tasks.task import ChecksSpec, Evaluation, Task, TaskSource

TASKS = Registry("nml.tasks", kind="task", where="--task", listing="python -m probes.tasks list")
"""The registered tasks."""
DEFAULT_ROOT = Path("data/tasks")
"""Where data of tasks is kept unless told otherwise."""
_FEWEST = 2
_FEWEST_CLASSES: dict[Target, int] = {"classification": 2, "multilabel": 1, "regression": 0}


def task_source(name: str) -> TaskSource:
    """Return the task of a name; without one, the source of that name makes a task of the user's own data.

    Raises:
        UserError: If neither is registered, or it does not load.
    """
    if find_task(TASKS, name).group == SOURCES.group:
        return OwnDataTask(name)
    source: TaskSource = TASKS.load(name)
    return source


def check_spec(text: str) -> None:
    """Check what a user named, as far as that needs none of its data.

    Raises:
        UserError: If the task is unknown, or has an option that it does not take.
    """
    spec = split_spec(text)
    source = task_source(spec.kind)
    if isinstance(source, ChecksSpec):
        source.check(spec)


def open_task(text: str, root: Path = DEFAULT_ROOT) -> Task:
    """Return the task a user named, for example ``digits`` or ``parquet:train.parquet,test.parquet``.

    Raises:
        UserError: If the task is unknown, its data missing, or its labels unusable.
    """
    spec = split_spec(text)
    task = task_source(spec.kind).open(spec, root)
    check_task(task)
    return task


def check_task(task: Task) -> None:
    """Check names, sizes, unique keys and classes of every split.

    Raises:
        UserError: Names the split and the class or key that is wrong.
    """
    if len(task.classes) < _FEWEST_CLASSES[task.target]:
        raise UserError(
            f"task {task.name}: {len(task.classes)} class in the training data",
            possible="two or more" if task.target == "classification" else "one or more",
            mend="check the label column",
        )
    count = len(task.classes)
    _check_samples(task, "train", task.train, count)
    if task.validation is not None:
        _check_samples(task, "validation", task.validation, count)
    _check_names(task)
    for evaluation in task.evaluations:
        groups = evaluation.groups
        _check_samples(task, evaluation.name, evaluation.samples, count if groups is None else len(groups))
        _check_kind(task, evaluation)
        allowed = evaluation.classes
        if allowed is not None and not np.isin(evaluation.samples.labels, allowed).all():
            raise UserError(f"task {task.name}, {evaluation.name}: labels outside the classes it declares")
    if task.target == "regression":
        return
    labels = task.train.labels
    present = labels.sum(axis=0) if labels.ndim > 1 else np.bincount(labels, minlength=len(task.classes))
    missing = [task.classes[label] for label in np.flatnonzero(present == 0)]
    if missing:
        raise UserError(
            f"task {task.name}: no training sample of class {some(missing, 5)}",
            mend=("number classes from 0, or name them; " if missing[0] == "0" else "")
            + "every class that is tested must occur in the training data",
        )


def _check_names(task: Task) -> None:
    """Refuse two evaluations of one name: results are told apart by it, and only one's would be kept."""
    names = [evaluation.name for evaluation in task.evaluations]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"task {task.name}: {names.count(twice)} evaluations are called {twice}",
            possible="a name for each",
            mend="rename their files, and name none of them twice",
        )


def _check_kind(task: Task, evaluation: Evaluation) -> None:
    """Refuse single texts beside pairs: an encoder would read them, and the scores would mean nothing."""
    if task.modality != "text":
        return
    trained, tested = (
        len(content) if isinstance(content, tuple) else 1
        for content in (task.train.read(0), evaluation.samples.read(0))
    )
    if trained != tested:
        raise UserError(
            f"task {task.name}: {evaluation.name} has {tested} text(s) a sample, the training data {trained}",
            mend="name the columns: ...,text=COLUMN,pair=COLUMN",
        )


def _check_samples(task: Task, split: str, samples: SampleSet, classes: int) -> None:
    count = len(samples.keys)
    if count < (_FEWEST if split == "train" else 1):
        raise UserError(f"task {task.name}, {split}: {count} samples", mend="check the files of this split")
    if len(set(samples.keys)) != count:
        raise UserError(f"task {task.name}, {split}: sample keys occur twice", mend="make them unique")
    if task.target != "classification":
        _check_target(task, split, samples)
        return
    wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= classes))
    if len(wrong):
        raise UserError(
            f"task {task.name}, {split}: label {samples.labels[wrong[0]]} of sample {samples.keys[wrong[0]]}",
            possible=f"0 to {classes - 1}",
            mend="a class that is tested must occur in the training data",
        )


def _check_target(task: Task, split: str, samples: SampleSet) -> None:
    """Refuse labels that are no numbers, or none of several classes, or that nothing can be told of."""
    labels, count = samples.labels, len(samples.keys)
    shown = f"{labels.dtype} {list(labels.shape)}"
    several = task.target == "multilabel"
    expected = f"bool [{count}, {len(task.classes)}]" if several else f"float64 [{count}]"
    if shown != expected:
        raise UserError(f"task {task.name}, {split}: labels are {shown}", possible=expected)
    if several and len(np.unique(labels)) < 2:
        raise UserError(
            f"task {task.name}, {split}: {'every sample has all' if labels.any() else 'no sample has any'} "
            "of the classes",
            mend="check the label columns",
        )
    if not several and not np.isfinite(labels).all():
        bad = samples.keys[int(np.flatnonzero(~np.isfinite(labels))[0])]
        raise UserError(f"task {task.name}, {split}: the label of {bad} is not finite", mend="leave it out")
    if not several and count > 1 and labels.min() == labels.max():
        raise UserError(
            f"task {task.name}, {split}: all labels are {labels[0]:g}",
            possible="numbers that differ",
            mend="check the label column",
        )
    if not several and split == "train":
        check_numbers(labels, f"task {task.name}, {split}")
