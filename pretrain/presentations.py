"""What a run remembers of every sample: when it was learnt, how often forgotten, and by what margin.

Each time that a sample is trained on, the forward pass of that step tells the predicted class and the margin:
the score of the given class minus the largest other one. *Forgotten* is a sample that was predicted as its
given class one time and not the next (Toneva et al. 2019); the mean margin over all times is the area under
the margin (AUM; Pleiss et al. 2020).

The ranks keep what they saw since the epoch began; rank 0 adds it up, in the order of the samples in the
global batches, so that nothing depends on who saw what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors.numpy import load_file, save_file

from nml.errors import UserError

Arrays = dict[str, npt.NDArray[Any]]
FILE = "memorisation.safetensors"
_SEEN = ("position", "sample", "predicted", "right")
# In the place of a position: the step was not finite.
_LEFT_OUT = -1


class Presentations:
    """The samples of a run as they are presented. About 25 bytes a sample on rank 0.

    Args:
        samples: N of the set.
    """

    def __init__(self, samples: int) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # Of the epoch that is going on, this rank's own and, on rank 0, what others had at the last save.
        self._rows: list[torch.Tensor] = []
        self._margins: list[torch.Tensor] = []
        size = samples if self._rank == 0 else 0
        self.state: Arrays = {
            "times": np.zeros(size, np.int32),
            "learnt": np.zeros(size, np.int32),
            "forgotten": np.zeros(size, np.int32),
            "margin": np.zeros(size, np.float64),
            "predicted": np.full(size, -1, np.int32),
            "right": np.zeros(size, np.bool_),
        }

    def see(
        self,
        first: int,
        samples: torch.Tensor,
        given: torch.Tensor,
        scores: torch.Tensor,
        columns: torch.Tensor | None = None,
        *,
        applied: torch.Tensor | None = None,
    ) -> None:
        """Take note of a rank's part of a global batch.

        Args:
            first: Place of the global batch's first sample in the run.
            samples: Sample numbers, int64 [n].
            given: Column of the scores that each was given, int64 [n], on their device.
            scores: Of classes, or of the captions of the rank's part, float32 [n, K].
            columns: What a column is remembered as, int64 [K]; None for its number.
            applied: Whether the step counts, a bool scalar on the device; None where it does.
        """
        if scores.shape[1] == 1:
            # Against nothing.
            scores = torch.nn.functional.pad(scores, (0, 1))
        best, place = scores.topk(2, dim=1)
        right = place[:, 0] == given
        predicted = (
            place[:, 0] if columns is None else columns.to(scores.device, non_blocking=True)[place[:, 0]]
        )
        own = scores.gather(1, given[:, None])[:, 0]
        self._margins.append(own - torch.where(right, best[:, 1], best[:, 0]))
        position = first + self._rank + self._world * torch.arange(len(samples), device=scores.device)
        if applied is not None:
            position = torch.where(applied, position, _LEFT_OUT)
        samples = samples.to(scores.device, non_blocking=True)
        self._rows.append(torch.stack([position, samples, predicted, right.long()]))

    def gather(self) -> None:
        """Let rank 0 have what all ranks saw. Collective."""
        rows = torch.cat([part.cpu() for part in self._rows] or [torch.zeros(4, 0).long()], dim=1)
        margins = torch.cat([part.cpu() for part in self._margins] or [torch.zeros(0)])
        counted = rows[0] != _LEFT_OUT
        rows, margins = rows[:, counted], margins[counted]
        self._rows, self._margins = [rows], [margins]
        if self._world == 1:
            return
        # Rank 0 may hold what others saw before: tensors that are gathered are of one size.
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self._world)]
        dist.all_gather(counts, torch.tensor([rows.shape[1]]))
        most = int(max(counts))
        parts = _gathered(torch.nn.functional.pad(rows, (0, most - rows.shape[1])))
        values = _gathered(torch.nn.functional.pad(margins, (0, most - len(margins))))
        sizes = [int(count) for count in counts] if self._rank == 0 else []
        self._rows = [part[:, :size] for part, size in zip(parts, sizes, strict=True)]
        self._margins = [part[:size] for part, size in zip(values, sizes, strict=True)]

    def end_of_epoch(self, epoch: int) -> None:
        """Add the epoch that has ended, the ``epoch``-th, counted from 1. Collective."""
        self.gather()
        if self._rank == 0 and self._rows:
            rows, margins = torch.cat(self._rows, dim=1).numpy(), torch.cat(self._margins).numpy()
            order = np.argsort(rows[0], kind="stable")
            rows, margins = rows[:, order], margins[order]
            for turn in _turns(rows[1]):
                samples, predicted, right = rows[1:, turn]
                self._add(epoch, samples, predicted, right, margins[turn])
        self._rows, self._margins = [], []

    def _add(
        self,
        epoch: int,
        samples: npt.NDArray[np.int64],
        predicted: npt.NDArray[np.int64],
        right: npt.NDArray[np.int64],
        margins: npt.NDArray[np.float32],
    ) -> None:
        """Add samples of which none occurs twice."""
        state, now = self.state, right.astype(bool)
        state["forgotten"][samples] += state["right"][samples] & ~now
        fresh = samples[now & (state["learnt"][samples] == 0)]
        state["learnt"][fresh] = epoch
        state["times"][samples] += 1
        state["margin"][samples] += margins
        state["predicted"][samples] = predicted
        state["right"][samples] = now

    def saved(self) -> Arrays:
        """Return copies of all that there is on rank 0, nothing elsewhere. Collective."""
        self.gather()
        if self._rank:
            return {}
        rows, margins = torch.cat(self._rows, dim=1), torch.cat(self._margins)
        seen = {"pending/rows": rows.numpy(), "pending/margins": margins.numpy()}
        return {name: value.copy() for name, value in (self.state | seen).items()}

    def load(self, file: Path) -> None:
        """Go on from what was saved, on rank 0; from nothing where there is no such file.

        Raises:
            UserError: If it is of another set, or does not read.
        """
        if self._rank or not file.exists():
            return
        try:
            found = load_file(file)
            rows, margins = found.pop("pending/rows"), found.pop("pending/margins")
            fits = found.keys() == self.state.keys() and all(
                found[name].shape == value.shape and found[name].dtype == value.dtype
                for name, value in self.state.items()
            )
            if not fits or rows.shape != (len(_SEEN), len(margins)):
                raise ValueError("it is of another run")
        # safetensors raises its own type, which derives from Exception alone.
        except Exception as error:
            raise UserError(f"{file}: does not read: {error}", mend="put another checkpoint back") from error
        self.state = {name: value.copy() for name, value in found.items()}
        self._rows, self._margins = [torch.from_numpy(rows.copy())], [torch.from_numpy(margins.copy())]


def write_saved(folder: Path, saved: Arrays) -> None:
    """Write what :meth:`Presentations.saved` returned into a checkpoint."""
    if saved:
        save_file({name: np.ascontiguousarray(value) for name, value in saved.items()}, folder / FILE)


def _gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all ranks on rank 0, which are of one size, and nothing elsewhere."""
    tensor = tensor.contiguous()
    if dist.get_rank():
        dist.gather(tensor, dst=0)
        return []
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.gather(tensor, parts, dst=0)
    return parts


def _turns(samples: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return places in parts within which no sample occurs twice: the first times, the second, and so on."""
    by_sample = np.argsort(samples, kind="stable")
    ordered = samples[by_sample]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
    lengths = np.diff(np.r_[starts, len(ordered)])
    turn = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return [by_sample[turn == number] for number in range(int(lengths.max(initial=0)))]
