"""Whether an encoder can read a task, told before any work is done."""

from __future__ import annotations

from nml.errors import UserError
from probes.encoders.encoder import Encoder
from probes.encoders.feature_files import FileEncoder
from probes.tasks.task import Task


def check_match(encoder: Encoder, task: Task, *, views: int = 0) -> None:
    """Refuse an encoder that cannot read a task, before any work is done.

    Raises:
        UserError: If modalities differ, files of features are missing or of another length, or augmented
            views are asked of features or texts.
    """
    name = encoder.info.name
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
    splits = [("train", task.train), ("test", task.evaluations[0].samples)]
    splits += [] if task.validation is None else [("validation", task.validation)]
    for split, samples in splits:
        if encoder.look_up(f"{task.name} {split}", len(samples.keys)) is None:
            raise UserError(
                f"--encoder {name}: no file for the {split} data of {task.name}", mend=f"add {split}=FILE"
            )
