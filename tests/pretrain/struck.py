"""Runs some of whose steps are not finite, and what they are held to: runs in which those never were."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import torch

# What is not finite, by step. One good step lies between, and one at either end.
STRUCK = {1: "loss", 3: "statistics", 4: "gradient"}


def strike(way: str, *, here: bool) -> None:
    """Prepare this rank's runs: ``struck`` makes its steps not finite, ``absent`` leaves them away.

    Args:
        way: Which.
        here: Whether it is this rank whose batches are bad.
    """
    if way == "absent":
        _leave_away()
    elif here:
        _make_bad()


def _leave_away() -> None:
    from pretrain.training import Trainer

    train_step = Trainer.train_step

    def stepped(self: Trainer, batch: Any, waited: float) -> None:
        if self.state.step in STRUCK:
            self.state.step += 1
        else:
            train_step(self, batch, waited)

    Trainer.train_step = stepped  # type: ignore[method-assign]


def _make_bad() -> None:
    from pretrain.classify import Classify

    backward = Classify.backward

    def struck(self: Classify, engine: Any, batch: Any, step: int) -> torch.Tensor:
        kind = STRUCK.get(step)
        if kind == "gradient":
            back = engine.backward
            with patch.object(engine, "backward", lambda loss: back(loss * math.inf)):
                return backward(self, engine, batch, step)
        # The square of the largest numbers is infinite; what is divided by that is 0, and so is not the loss.
        large = torch.finfo(batch.images.dtype).max ** 0.75
        factor = {"loss": math.nan, "statistics": large}.get(kind or "", 1.0)
        return backward(self, engine, batch._replace(images=batch.images * factor), step)

    Classify.backward = struck  # type: ignore[method-assign]
