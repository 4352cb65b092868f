"""The encoders that a run had along its training: those of the checkpoints it has kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.layout import CHECKPOINTS, kept_steps
from probes.encoders.checkpoint import Export, read_export
from probes.encoders.encoder import Encoder, Settings
from probes.encoders.text_tower import TwoTowerEncoder
from probes.encoders.torch_images import TorchImageEncoder
from probes.options import ALL_STEPS
from probes.samples import Content


def open_steps(runs: Sequence[Path], steps: Sequence[str], settings: Settings) -> list[Encoder]:
    """Return the encoders of checkpoints that runs have kept, of each run oldest first.

    One network at a time is in memory, however many checkpoints there are.

    Args:
        runs: Run folders.
        steps: Numbers of steps that every run has kept, or ``all``.
        settings: Device, batch size and signature.

    Raises:
        UserError: If a folder has no checkpoint, or none of such a step, or one is damaged.
    """
    shelf = _Shelf(settings)
    exports = [read_export(folder, settings) for run in runs for folder in _folders(run, steps)]
    return [
        _TwoTowerStep(export, shelf) if export.meta["library"] == "open_clip" else _Step(export, shelf)
        for export in exports
    ]


def _folders(run: Path, steps: Sequence[str]) -> list[Path]:
    kept = kept_steps(run)
    if not kept:
        raise UserError(
            f"--checkpoint {run}: has kept no checkpoint for --steps",
            possible=f"a run folder with {CHECKPOINTS}/step-NNNNNNNN",
        )
    if ALL_STEPS in steps:
        return list(kept.values())
    wanted = sorted(set(map(int, steps)))
    if missing := [step for step in wanted if step not in kept]:
        shown = ", ".join(map(str, kept))
        raise UserError(
            f"--steps {missing[0]}: {run} has kept no checkpoint of it",
            possible=f"{ALL_STEPS}, or of {shown}",
            mend="what a run keeps: --recipe.checkpoints.keep_every and keep_last of pretrain.run",
        )
    return [kept[step] for step in wanted]


class _Shelf:
    """Room for one network; the next one takes the place of the last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._of: Export | None = None
        self._encoder: TorchImageEncoder | None = None

    def take(self, export: Export) -> TorchImageEncoder:
        # Samples are prepared by several threads, each of which may be the first to ask.
        with self._lock:
            if self._encoder is None or self._of is not export:
                self._encoder = None
                self._encoder, self._of = export.open(self.settings), export
            return self._encoder


class _Step:
    def __init__(self, export: Export, shelf: _Shelf) -> None:
        self.info = export.info
        self.batch_size = shelf.settings.batch_size
        self._export, self._shelf = export, shelf

    def prepare(self, content: Content) -> Any:
        return self._shelf.take(self._export).prepare(content)

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        return self._shelf.take(self._export).encode(prepared)


class _TwoTowerStep(_Step):
    @property
    def texts(self) -> dict[str, str]:
        return self._towers().texts

    def class_embeddings(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._towers().class_embeddings(names)

    def _towers(self) -> TwoTowerEncoder:
        encoder = self._shelf.take(self._export)
        assert isinstance(encoder, TwoTowerEncoder)
        return encoder
