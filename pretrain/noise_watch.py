"""What noise does to a network while it trains, told every epoch: the set knows every label that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.engines import Engine, Tensors
from pretrain.fixed_sample import FixedSample
from pretrain.loading import Batch
from pretrain.noise_sums import OF_CLASSES, OF_PAIRS, class_sums, means, pair_sums
from pretrain.objective import Objective
from pretrain.presentations import FILE, Arrays, Presentations
from shards.noise import Kind

# Where the numbers of a line come from.
TRAINING, EVALUATION = "training", "evaluation"


class NoiseWatch:
    """Looks at the passes that train, and between epochs at a fixed sample where those do not tell all.

    Args:
        kind: Of the set.
        global_batch: Samples of a step.
        device: Where the network is.
        fixed: The sample to look at between epochs; None for none.
        presentations: Remembers every sample; None where nobody asked for it.
        memorised: Writes what was remembered, at the end of the run.
    """

    def __init__(
        self,
        kind: Kind,
        global_batch: int,
        device: torch.device,
        *,
        fixed: FixedSample | None = None,
        presentations: Presentations | None = None,
        memorised: Callable[[Presentations], None] | None = None,
    ) -> None:
        self._of_classes = kind == "class"
        self._names = OF_CLASSES if self._of_classes else OF_PAIRS
        self._global_batch = global_batch
        self._fixed = fixed
        self.presentations, self._memorised = presentations, memorised
        self._sums = torch.zeros(len(self._names), dtype=torch.int64, device=device)

    def see(self, step: int, batch: Batch, seen: Tensors | None, applied: torch.Tensor | None = None) -> None:
        """Look at what the forward passes of a step gave.

        Args:
            step: Its number, 0 is the first.
            batch: The rank's part of it.
            seen: Of classes ``scores`` [n, K], of captions ``image_features`` and ``text_features`` [n, D],
                detached; None where the passes do not tell.
            applied: Whether the step counts, a bool scalar on the device; None where it does.
        """
        if not seen or batch.truth is None:
            return
        first = step * self._global_batch
        if self._of_classes and "scores" in seen:
            scores = seen["scores"]
            self._add(class_sums(scores, batch.targets, batch.truth), applied)
            if self.presentations is not None:
                self.presentations.see(first, batch.indices, batch.targets, scores, applied=applied)
        elif not self._of_classes and "text_features" in seen:
            images, texts = seen["image_features"], seen["text_features"]
            self._add(pair_sums(images, texts, batch.truth), applied)
            if self.presentations is not None:
                images, texts = (torch.nn.functional.normalize(part, dim=1) for part in (images, texts))
                own = torch.arange(len(images), device=images.device)
                cosines = images @ texts.T
                self.presentations.see(first, batch.indices, own, cosines, batch.indices, applied=applied)

    def _add(self, sums: torch.Tensor, applied: torch.Tensor | None) -> None:
        self._sums += sums if applied is None else sums * applied

    def end_of_epoch(self, epoch: int, engine: Engine, objective: Objective) -> list[dict[str, Any]]:
        """Return what to tell of the ``epoch``-th epoch, counted from 1, and begin the next. Collective."""
        told = [(TRAINING, means(self._total()))]
        self._sums.zero_()
        if self._fixed is not None:
            told.append((EVALUATION, self._look(self._fixed, engine, objective)))
        if self.presentations is not None:
            self.presentations.end_of_epoch(epoch)
        return [{"epoch": epoch, "source": source, **groups} for source, groups in told if groups]

    def _look(self, fixed: FixedSample, engine: Engine, objective: Objective) -> dict[str, dict[str, float]]:
        if not self._of_classes:
            return fixed.look_at_pairs(engine, objective)
        told, scores = fixed.look_at_classes(engine, objective)
        if self.presentations is not None and dist.get_rank() == 0:
            self.presentations.see(0, torch.from_numpy(fixed.numbers), torch.tensor(fixed.given), scores)
        return told

    def _total(self) -> dict[str, int]:
        # On a CPU this rank's own sums would become those of all.
        total = self._sums.cpu().clone()
        dist.all_reduce(total)
        return dict(zip(self._names, total.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return what the marker of a checkpoint says of the epoch that is going on. Collective."""
        return {"sums": self._total()}

    def saved(self) -> Arrays:
        """Return what rank 0 writes into a checkpoint. Collective."""
        return {} if self.presentations is None else self.presentations.saved()

    def resume(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Go on within an epoch from a checkpoint and its marker; one without sums is of an earlier version.

        Raises:
            UserError: If what is remembered of the samples does not read.
        """
        sums = state.get("sums") or {}
        # Of all ranks, so one of them has them now.
        own = [int(sums.get(name, 0)) if dist.get_rank() == 0 else 0 for name in self._names]
        self._sums.copy_(torch.tensor(own))
        if self.presentations is not None:
            self.presentations.load(checkpoint / FILE)

    def write(self) -> None:
        """Write what was remembered of the samples, on rank 0."""
        if self.presentations is not None and self._memorised is not None:
            self._memorised(self.presentations)
