"""Write checkpoints beside the training, and know when one has failed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nml import layout
from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, make_folder
from nml.layout import is_complete, step_folders
from nml.recipe import Checkpoints
from pretrain.checkpoints import (
    Checkpoint,
    checkpoint_folder,
    clear_unfinished,
    complete,
    newest_checkpoint,
    retire,
    set_aside_damaged,
)
from pretrain.engines import Engine, Tensors
from pretrain.exporting import publish, write_export
from pretrain.world import from_main


class Saver:
    """Saves one checkpoint at a time; rank 0 completes it in the background.

    Args:
        run: The run folder.
        config: When and what to keep.
    """

    def __init__(self, run: Path, config: Checkpoints) -> None:
        self._run = run
        self._config = config
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
    ) -> None:
        """Save the state of ``step``; returns once it is copied or written. Collective.

        Args:
            engine: Whose state to save.
            step: Steps done.
            record: What the marker says.
            shared, own: See :class:`pretrain.engines.Engine`.
            export: Whole weights and buffers on rank 0, and meta.json.

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
            target=self._finish, args=(folder, future, record, export), name=f"save {step}"
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
    ) -> None:
        try:
            if future is not None:
                # It ends on rank 0 only after every rank has written its part.
                future.result()
            if dist.get_rank() == 0 and not self.failed:
                write_export(folder / layout.EXPORT, *export)
                complete(folder, record)
                publish(folder / layout.EXPORT, self._run / layout.EXPORT)
                retire(self._run, keep_last=self._config.keep_last, keep_every=self._config.keep_every)
        # Raised where the training loop asks, on all ranks alike.
        except BaseException as error:
            self.note(error)

    def _give_up(self) -> None:
        words: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(words, str(_root(self._error)) if self._error else None)
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


def _root(error: BaseException) -> BaseException:
    """Return what was raised first, inside torch's collection of the ranks' failures."""
    failures = getattr(error, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        return _root(first[0] if isinstance(first, tuple) else first)
    return error.__cause__ or error
