"""How the paper trains heads: epochs, learning rates and their decay (arXiv 2309.17002, A.2, B.1, B.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nml.errors import UserError

Modality = Literal["vision", "text"]
Decay = Literal["cosine", "linear"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW's settings over one fit.

    Attributes:
        epochs: Passes over the training features.
        lr: Learning rate at the first step.
        weight_decay: Decoupled weight decay, on every parameter.
        batch_size: Samples a step; smaller sets are one batch.
        decay: How the learning rate goes to zero, step by step; there is no warm-up.
        least_steps: Steps of a fit on however few samples; 0 leaves them to the epochs.
    """

    epochs: int = 30
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 64
    decay: Decay = "cosine"
    least_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}", possible="1 or more")
        if self.least_steps < 0:
            raise UserError(f"least_steps {self.least_steps}", possible="0 or more")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr {self.lr}", possible="above 0")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise UserError(f"weight_decay {self.weight_decay}", possible="0 or more")

    def steps(self, samples: int) -> int:
        """Return the optimiser steps of a fit on ``samples`` training samples."""
        return max(math.ceil(self.epochs * samples / self.batch(samples)), self.least_steps)

    def batch(self, samples: int) -> int:
        """Return the batch size used on ``samples`` training samples."""
        return min(self.batch_size, samples)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step ``step`` of ``steps``, counted from 0."""
        left = 1 - step / steps
        return self.lr * (left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


# The paper counts epochs, over sets of thousands of samples. On 50 samples its 30 epochs would be 30 steps of
# 0.001, which move an MLP nowhere.
LEAST_STEPS = 600
VISION = Schedule(least_steps=LEAST_STEPS)
TEXT = Schedule(epochs=10, decay="linear", least_steps=LEAST_STEPS)
VISION_LINEAR = Schedule(lr=0.1, weight_decay=0.0, least_steps=LEAST_STEPS)
# The appendix names lr 0.01 for text and no weight decay of its own; linear probes have none in vision.
TEXT_LINEAR = Schedule(epochs=10, lr=0.01, weight_decay=0.0, decay="linear", least_steps=LEAST_STEPS)
