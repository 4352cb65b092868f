"""Whether an encoder can read a task, told before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from nml.errors import UserError, unknown_name
from plugins.head import targets_of
from plugins.registry import HEADS
from probes.encoders.encoder import Encoder
from probes.encoders.feature_files import OOD, FileEncoder
from probes.heads import HeadChoice
from probes.tasks.task import Evaluation, Task


def check_match(encoder: Encoder, task: Task, *, views: int = 0) -> None:
    """Refuse an encoder that cannot read a task, before any work is done.

    Raises:
        UserError: If modalities differ, files of features are missing or of another length, or augmented
            views are asked of features or texts.
    """
    name = encoder.info.name
    if task.modality == "features" and not isinstance(encoder, FileEncoder):
        raise UserError(
            f"encoder {name} reads {encoder.info.modality}s, task {task.name} is labels alone",
            mend="choose a task that has samples, or --encoder features:train=FILE,test=FILE",
        )
    if encoder.info.modality not in (task.modality, "any"):
        raise UserError(
            f"encoder {name} reads {encoder.info.modality}s, task {task.name} holds {task.modality}s",
            mend="choose an encoder and a task of one modality",
        )
    if views and (task.modality == "text" or isinstance(encoder, FileEncoder)):
        what = f"task {task.name} holds texts" if task.modality == "text" else f"{name} are ready features"
        raise UserError(f"--views {views}: {what}", possible="0")
    if not isinstance(encoder, FileEncoder):
        return
    encoder = encoder.of_task(task.name)
    splits = [("train", task.train), ("test", task.evaluations[0].samples)]
    splits += [] if task.validation is None else [("validation", task.validation)]
    for split, samples in splits:
        if encoder.look_up(f"{task.name} {split}", len(samples.keys)) is None:
            raise UserError(
                f"--encoder {name}: no file for the {split} data of {task.name}", mend=f"add {split}=FILE"
            )
    for evaluation in evaluations_of(encoder, task):
        if evaluation.domain == "ood":
            encoder.look_up(evaluation.name, len(evaluation.samples.keys))


def check_target(heads: Sequence[HeadChoice], task: Task, noises: Sequence[Fraction]) -> None:
    """Refuse heads that do not learn from such labels as a task has, and noise that such labels cannot have.

    Raises:
        UserError: Names the head, and those that do.
    """
    wrong = [choice.plugin.name for choice in heads if task.target not in targets_of(choice.make)]
    if wrong:
        raise UserError(
            f"--plugin {wrong[0]}: does not take {task.target}, which task {task.name} is",
            possible=", ".join(HEADS.those(lambda head: task.target in targets_of(head))),
        )
    if task.target != "classification" and any(noises):
        raise UserError(
            f"--downstream-noise {float(max(noises)):g}: noise models flip single classes, "
            f"and task {task.name} is {task.target}",
            possible="0",
        )


def check_texts(heads: Sequence[HeadChoice], encoder: Encoder) -> None:
    """Refuse heads that ask for class text embeddings of an encoder that has none.

    Raises:
        UserError: Names both.
    """
    asking = next((choice.plugin.name for choice in heads if choice.asks_for_texts), None)
    if asking is not None and not hasattr(encoder, "class_embeddings"):
        raise UserError(
            f"--plugin {asking}: asks for text embeddings of the classes, "
            f"and encoder {encoder.info.name} has no text tower",
            possible="open_clip:NAME/TAG, or a run of the objective clip",
        )


def check_files(encoder: Encoder, tasks: Sequence[Task], *, allow_overlap: bool = False) -> Iterator[str]:
    """Refuse files of features that no task asks for, and yield a line on each task that lacks some.

    Raises:
        UserError: If a file is named after no split and no out-of-domain evaluation of any of the tasks, or
            two parts of a task have the same features and ``allow_overlap`` is not set.
    """
    if not isinstance(encoder, FileEncoder):
        return
    splits = [
        "train",
        *(["validation"] if any(task.validation is not None for task in tasks) else []),
        "test",
    ]
    known = [*splits, *(f"{task.name} {split}" for task in tasks for split in splits)]
    known += [
        name
        for task in tasks
        for evaluation in task.evaluations
        if evaluation.domain == "ood"
        for name in _names_of(evaluation, task)
    ]
    for name in encoder.arrays:
        if name not in known:
            raise unknown_name(f"--encoder {encoder.info.name}: a file", name, known)
    hashes = encoder.info.identity["files"]
    for task in tasks:
        names = [*(f"{task.name} {split}" for split in splits), *splits]
        names += [name for test in task.evaluations[1:] for name in _names_of(test, task)]
        first: dict[str, str] = {}
        for name in filter(hashes.__contains__, names):
            other = first.setdefault(hashes[name], name)
            if other != name and not allow_overlap:
                raise UserError(
                    f"--encoder {encoder.info.name}: the features of {name} are those of {other}",
                    mend="name the file of each, or add --allow-overlap",
                )
        measured = {test.name for test in evaluations_of(encoder, task)}
        missing = [test.name for test in task.evaluations if test.name not in measured]
        if missing:
            yield (
                f"{encoder.info.name}: no file for {', '.join(missing)}, left out; "
                f"to measure one add its file: {missing[0]}=FILE"
            )


def _names_of(evaluation: Evaluation, task: Task) -> tuple[str, str]:
    """Return what the file of an out-of-domain evaluation may be called."""
    return evaluation.name, OOD + evaluation.name.removeprefix(f"{task.name}-")


def evaluations_of(encoder: Encoder, task: Task) -> tuple[Evaluation, ...]:
    """Return what of a task is measured: all of it, or of ready features what there are files for."""
    if not isinstance(encoder, FileEncoder):
        return task.evaluations
    named = encoder.of_task(task.name).arrays
    return tuple(test for test in task.evaluations if test.domain == "id" or test.name in named)
