"""Checkpoints as immutable folders that count only once their marker, written last, is there.

There is no ``latest`` pointer: the newest complete folder is found by looking. Nothing old is
removed before the new one is complete.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nml import layout
from nml.errors import UserError
from nml.files import sha256_file, sync_tree, write_json
from nml.layout import is_complete, step_folders


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        folder: Its folder.
        step: Steps done.
        record: What the marker says beside the files.
    """

    folder: Path
    step: int
    record: dict[str, Any]

    @property
    def state(self) -> Path:
        """The engine's files."""
        return self.folder / layout.STATE

    @property
    def export(self) -> Path:
        """The encoder's files."""
        return self.folder / layout.EXPORT


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / layout.CHECKPOINTS / layout.step_name(step)


def complete(folder: Path, record: dict[str, Any]) -> None:
    """Declare all files of a folder final: list their sizes and hashes in the marker."""
    # Writers flush their files, but not the names of these: the marker alone would reach the disk.
    sync_tree(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / layout.MARKER, {"format": layout.CHECKPOINT_FORMAT, **record, "files": files})


def verify(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder, every file checked against the marker.

    Raises:
        UserError: Naming the first file that is missing or different.
    """
    marker = folder / layout.MARKER
    try:
        record = json.loads(marker.read_text())
        files, step = record["files"], int(record["step"])
    except FileNotFoundError:
        raise UserError(f"{folder.name}: not complete (no {layout.MARKER})") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.name}: {layout.MARKER} does not read: {error}") from error
    if record.get("format") != layout.CHECKPOINT_FORMAT:
        raise UserError(f"{folder.name}: format {record.get('format')!r}", possible=layout.CHECKPOINT_FORMAT)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder.name}: {name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{folder.name}: {name} has {path.stat().st_size} bytes, not {expected['bytes']}")
        if sha256_file(path) != expected["sha256"]:
            raise UserError(f"{folder.name}: {name} has changed since it was written")
    return Checkpoint(folder, step, record)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose files are whole, warning of each that is passed over.

    Raises:
        UserError: If there has been a checkpoint but none is whole: the run does not start over by itself.
    """
    # The run's export appears only after a checkpoint was complete.
    damaged = (run / layout.EXPORT).exists()
    for folder in step_folders(run):
        try:
            return verify(folder)
        except UserError as error:
            # A save that was cut short never got its marker; that is how it is meant to look.
            damaged = damaged or is_complete(folder)
            print(f"warning: checkpoint {error}; looking for the one before", file=sys.stderr, flush=True)
    if damaged:
        raise UserError(
            f"{run / layout.CHECKPOINTS}: no checkpoint is whole",
            mend="put a whole one back, or remove the run folder to start over",
        )
    return None


def set_aside_damaged(run: Path, newest: Checkpoint) -> None:
    """Rename the damaged checkpoints newer than the one a run resumes from.

    Under their own names they would count when old ones are retired, and their steps will be saved again.
    """
    for folder in step_folders(run):
        if folder.name > newest.folder.name and is_complete(folder):
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"warning: kept as {aside.name}, which is not used", file=sys.stderr, flush=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what a save that was cut short left under a name that is needed again.

    Raises:
        UserError: If the folder is a complete checkpoint, which stays as it is.
    """
    if is_complete(folder):
        raise UserError(f"{folder}: is complete already", mend="remove it, or start another run folder")
    shutil.rmtree(folder, ignore_errors=True)


def retire(run: Path, *, keep_last: int, keep_every: int) -> None:
    """Remove complete checkpoints beyond the newest ``keep_last``, and unfinished ones older than those.

    Steps that are multiples of ``keep_every`` stay.
    """
    finished = [folder for folder in step_folders(run) if is_complete(folder)]
    kept = set(finished[:keep_last]) | set(_every(finished, keep_every))
    if not finished:
        return
    for folder in step_folders(run):
        if folder not in kept and folder < finished[0]:
            # Without its marker it no longer counts, however far the removal gets.
            (folder / layout.MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _every(folders: list[Path], number: int) -> Iterator[Path]:
    return (folder for folder in folders if number and int(folder.name.removeprefix("step-")) % number == 0)
