"""Checkpoints: written beside the training, found again, retired.

Each is an immutable folder that counts only once its marker, written last, is there.

There is no ``latest`` pointer: the newest complete folder is found by looking. Nothing old is
removed before the new one is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nml import layout
from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, make_folder, sha256_file, sync_tree, write_json
from nml.layout import is_complete, step_folders
from nml.recipe import Checkpoints
from nml.untrusted import Untrusted, file_name, read_json, shown
from pretrain.encoder_files import publish, write_export
from pretrain.engines import Engine, Tensors
from pretrain.presentations import Arrays, write_saved
from pretrain.world import from_main

if TYPE_CHECKING:
    from pretrain.probing import Probing

# Less than any state.
_NO_ROOM_BYTES = 1 << 20


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
        record = read_json(marker)
        files, step = _files(record), int(record["step"])
    except FileNotFoundError:
        raise UserError(f"{folder.name}: not complete (no {layout.MARKER})") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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


def _files(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a marker says of each file, none of them outside of its folder."""
    files: dict[str, dict[str, Any]] = record["files"]
    for name, expected in files.items():
        for part in name.split("/"):
            file_name(part)
        if not isinstance(expected["bytes"], int) or not isinstance(expected["sha256"], str):
            raise Untrusted(f"{name} has {shown(expected)}")
    return files


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


def recover(run: Path) -> Checkpoint | None:
    """Return the checkpoint to resume from, and put right what a kill left of the folder around it.

    Raises:
        UserError: If there has been a checkpoint but none is whole.
    """
    for leftover in run.glob(f".{layout.EXPORT}.*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = newest_checkpoint(run)
    if found is None:
        return None
    set_aside_damaged(run, found)
    here, there = run / layout.EXPORT / layout.META, found.export / layout.META
    # Killed between completing the checkpoint and publishing it, perhaps after the last step of all.
    if not here.exists() or here.read_bytes() != there.read_bytes():
        publish(found.export, run / layout.EXPORT)
    return found


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

    Steps that are multiples of ``keep_every`` stay, and so do those that are marked to be measured.
    """
    finished = [folder for folder in step_folders(run) if is_complete(folder)]
    kept = set(finished[:keep_last]) | set(_every(finished, keep_every))
    kept |= {checkpoint_folder(run, step) for step in layout.marked_steps(run)}
    if not finished:
        return
    for folder in step_folders(run):
        if folder not in kept and folder < finished[0]:
            # Without its marker it no longer counts, however far the removal gets.
            (folder / layout.MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _every(folders: list[Path], number: int) -> Iterator[Path]:
    return (folder for folder in folders if number and int(folder.name.removeprefix("step-")) % number == 0)


class Saver:
    """Saves one checkpoint at a time; rank 0 completes it in the background.

    Args:
        run: The run folder.
        config: When and what to keep.
        probing: Has checkpoints measured; None where nobody asked for it.
    """

    def __init__(self, run: Path, config: Checkpoints, probing: Probing | None = None) -> None:
        self._run = run
        self._config = config
        self._probing = probing
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank's part of a save has failed; the others may not know yet."""
        return self._error is not None

    def start(
        self,
        engine: Engine,
        *,
        step: int,
        record: dict[str, Any],
        shared: Tensors,
        own: Tensors,
        export: tuple[Tensors, dict[str, Any]],
        watched: Arrays | None = None,
        probed: bool = False,
    ) -> None:
        """Save the state of ``step``; returns once it is copied or written. Collective.

        Args:
            engine: Whose state to save.
            step: Steps done.
            record: What the marker says.
            shared, own: See :class:`pretrain.engines.Engine`.
            export: Whole weights and buffers on rank 0, and meta.json.
            watched: What rank 0 remembers of the samples.
            probed: Whether it is to be measured.

        Raises:
            UserError: If this save, or the one before, failed.
        """
        self.wait()
        self._step = step
        folder = checkpoint_folder(self._run, step)
        with self._noting():
            if dist.get_rank() == 0:
                clear_unfinished(folder)
                make_folder(folder)
        self._fail_together()
        future: Future[Any] | None = None
        with self._noting():
            future = engine.save(folder / layout.STATE, shared, own)
        # What was written right here counts only when all ranks have written theirs.
        self._fail_together()
        self._thread = threading.Thread(
            target=self._finish,
            args=(folder, future, record, export, watched or {}, probed),
            name=f"save {step}",
        )
        self._thread.start()
        if future is None:
            # Nothing goes on in the background but rank 0's marker, which the others wait for.
            self.wait()

    def wait(self) -> None:
        """Wait until the save under way is complete. Collective.

        Raises:
            UserError: On every rank, if it failed on any.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._fail_together()

    def linger(self, seconds: float) -> None:
        """Give a save under way the time to be completed, when this process is about to end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def note(self, error: BaseException) -> None:
        """Keep an error of this rank until all ranks can stop because of it."""
        self._error = self._error or error

    @contextmanager
    def _noting(self) -> Iterator[None]:
        # Whatever a full or failing disk raises. One rank that left here would leave the others waiting.
        try:
            yield
        except Exception as error:
            self.note(error)

    def _fail_together(self) -> None:
        failed = torch.tensor([float(self.failed)])
        dist.all_reduce(failed)
        if failed.item():
            self._give_up()

    def _finish(
        self,
        folder: Path,
        future: Future[Any] | None,
        record: dict[str, Any],
        export: tuple[Tensors, dict[str, Any]],
        watched: Arrays,
        probed: bool,
    ) -> None:
        try:
            if future is not None:
                # It ends on rank 0 only after every rank has written its part.
                future.result()
            if dist.get_rank() == 0 and not self.failed:
                write_export(folder / layout.EXPORT, *export)
                write_saved(folder, watched)
                probing = self._probing
                if probing is not None and probed:
                    probing.mark(self._step)
                complete(folder, record)
                publish(folder / layout.EXPORT, self._run / layout.EXPORT)
                retire(self._run, keep_last=self._config.keep_last, keep_every=self._config.keep_every)
                if probing is not None and probed:
                    probing.ask(self._step)
        # Raised where the training loop asks, on all ranks alike.
        except BaseException as error:
            self.note(error)

    def _give_up(self) -> None:
        words: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(words, self._why(self._error) if self._error else None)
        why = next(filter(None, words), "unknown")
        good = [folder.name for folder in step_folders(self._run) if is_complete(folder)]
        newest = from_main(good[0] if good else "none")
        folder = checkpoint_folder(self._run, self._step)
        if dist.get_rank() == 0 and not is_complete(folder):
            # What was written of it takes the room that a second attempt needs.
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{self._run} (last save: step {self._step}) could not be written: {why.splitlines()[0][:300]}",
            mend=f"newest complete one: {newest}; make room and run the same command again",
        )

    def _why(self, error: BaseException) -> str:
        root = _root(error)
        # torch's writer speaks of positions in a file that it could not write on; what another rank's error
        # came of does not travel with it.
        with suppress(OSError):
            if not isinstance(root, OSError) and shutil.disk_usage(self._run).free < _NO_ROOM_BYTES:
                return f"{os.strerror(errno.ENOSPC)} ({root})"
        return str(root)


def _root(error: BaseException) -> BaseException:
    """Return what was raised first, inside torch's collection of the ranks' failures."""
    failures = getattr(error, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        return _root(first[0] if isinstance(first, tuple) else first)
    raised: BaseException | None = error
    while raised is not None:
        if isinstance(raised, OSError):
            return raised
        raised = raised.__cause__ or raised.__context__
    return error.__cause__ or error
