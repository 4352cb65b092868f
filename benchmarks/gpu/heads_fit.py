"""Heads on the device: one fit of nmtune, and 45 in one pass."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from benchmarks.gpu.apart import Apart
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.turns import memory_mb, reset_memory, seconds_of
from benchmarks.heads import CLASSES, FRACTIONS, SEEDS, accuracy, clusters
from plugins.nmtune import NMTune
from plugins.trainer import Copy, fit_many
from pretrain.engines.native import device_of_rank

_RATES = (3e-4, 1e-3, 3e-3)
_EPOCHS = 3


def measure(sizes: Sizes, folder: Path, tell: Tell) -> None:  # noqa: ARG001 - as all parts
    """Tell the seconds of each, and of the fits one by one as they would take."""
    device = device_of_rank().type
    train, test = (clusters(sizes.samples, sizes.width, seed) for seed in (0, 1))
    apart = Apart()
    with apart("one"):
        # What is compiled and loaded for the first fit is no part of any.
        NMTune(epochs=1).fit(*train, num_classes=CLASSES, device=device)
        head = NMTune(epochs=_EPOCHS)
        tell("one_s", seconds_of(lambda: head.fit(*train, num_classes=CLASSES, device=device)))
        tell("accuracy", accuracy(head.predict_logits(test.features), test.labels))
    with apart("copies"):
        grid = list(itertools.product(FRACTIONS, SEEDS, _RATES))
        rows = [torch.arange(round(part * sizes.samples)) for part, _, _ in grid]
        copies = [
            Copy(NMTune(epochs=_EPOCHS, lr=rate), seed=seed, rows=some)
            for some, (_, seed, rate) in zip(rows, grid, strict=True)
        ]
        reset_memory()
        tell("copies", len(copies))
        tell("copies_s", seconds_of(lambda: fit_many(copies, *train, num_classes=CLASSES, device=device)))
        tell("memory_mb", memory_mb())
        worst = min(accuracy(copy.head.predict_logits(test.features), test.labels) for copy in copies)
        tell("worst_accuracy", worst)
    apart.tell()
