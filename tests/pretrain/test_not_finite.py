"""Steps that are not finite change nothing, are counted, and never reach a checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nml.errors import UserError
from nml.recipe import Optimizer, Recipe
from pretrain.engines.ddp import DdpEngine
from pretrain.loading import Batch
from pretrain.metrics import read_metrics
from pretrain.recording import Recorder
from pretrain.run_state import RunState
from pretrain.training import Trainer
from pretrain.world import World

OnRanks = Callable[..., list[Any]]


class Scripted:
    """An objective whose loss and gradient are given for each step."""

    text_transform = None

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self._steps = steps

    def backward(self, engine: DdpEngine, batch: Batch, step: int) -> torch.Tensor:
        loss, gradient = self._steps[step]
        for parameter in engine.network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        return torch.tensor(loss)

    def after_step(self, engine: DdpEngine) -> None: ...


def make_trainer(folder: Path, steps: list[tuple[float, float]], *, clip: float, skip: int = 3) -> Trainer:
    recipe = Recipe(
        epochs=1,
        global_batch=2,
        skip_nonfinite=skip,
        optimizer=Optimizer(lr=0.1, momentum=0.0, weight_decay=0.0, clip=clip),
    )
    network = nn.Linear(2, 2, bias=False)
    nn.init.ones_(network.weight)
    engine = DdpEngine(network, recipe)
    # One step more than is scripted: the learning rate never reaches 0.
    sampler: Any = SimpleNamespace(steps_per_epoch=len(steps) + 1, state=lambda step: {"step": step})
    recorder = Recorder(
        folder,
        is_main=True,
        steps_per_epoch=sampler.steps_per_epoch,
        global_batch=2,
        device=engine.device,
        started=time.perf_counter(),
        observers=[],
    )
    recorder.open(0)
    objective: Any = Scripted(steps)
    keys: Any = SimpleNamespace(
        index=SimpleNamespace(place=lambda index: SimpleNamespace(key=f"image-{index}"))
    )
    return Trainer(
        recipe,
        World(),
        engine=engine,
        objective=objective,
        sampler=sampler,
        shard_set=keys,
        validation=None,
        state=RunState(recipe, folder, World(), engine=engine, sampler=sampler, meta={}),
        recorder=recorder,
    )


BATCH = Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.tensor([7, 5]))


def weights_after(rank: int, size: int, folder: Path, steps: list[tuple[float, float]], clip: float) -> Any:
    trainer = make_trainer(folder, steps, clip=clip)
    weights, skipped = [], []
    for _ in steps:
        trainer.train_step(BATCH, 0.0)
        weights.append(float(trainer.engine.network.get_parameter("weight")[0, 0]))
        skipped.append(trainer.state.skipped)
    trainer.recorder.close()
    return weights, skipped


def test_a_step_whose_loss_is_not_finite_changes_nothing(on_ranks: OnRanks, tmp_path: Path) -> None:
    steps = [(1.0, 1.0), (math.inf, 1.0), (math.nan, math.nan), (1.0, 1.0)]
    ((weights, skipped),) = on_ranks(1, weights_after, tmp_path / "store", tmp_path, steps, 0.0)
    assert skipped == [0, 1, 2, 0]
    assert weights[0] == weights[1] == weights[2]
    assert weights[3] < weights[2] < 1
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, None, None, 1.0]


def test_a_gradient_that_is_not_finite_is_skipped_where_it_is_clipped(
    on_ranks: OnRanks, tmp_path: Path
) -> None:
    steps = [(1.0, 1.0), (1.0, math.inf), (1.0, math.nan), (1.0, 1.0)]
    ((weights, skipped),) = on_ranks(1, weights_after, tmp_path / "store", tmp_path, steps, 1.0)
    assert skipped == [0, 1, 2, 0]
    assert weights[0] == weights[1] == weights[2]
    assert math.isfinite(weights[3])


def test_one_too_many_stops_with_the_step_and_the_keys(on_ranks: OnRanks, tmp_path: Path) -> None:
    def stopped(rank: int, size: int) -> str:
        trainer = make_trainer(tmp_path, [(math.nan, 1.0)] * 3, clip=0.0, skip=2)
        trainer.train_step(BATCH, 0.0)
        trainer.train_step(BATCH, 0.0)
        with pytest.raises(UserError) as error:
            trainer.train_step(BATCH, 0.0)
        return str(error.value)

    (said,) = on_ranks(1, stopped, tmp_path / "store")
    assert said.startswith("step 2: the loss is nan, 3 steps in a row")
    assert "image-5, image-7" in said
    assert json.loads((tmp_path / "logs" / "not-finite.json").read_text())["samples"] == [
        "image-5",
        "image-7",
    ]


def test_weights_that_are_not_finite_are_not_saved(on_ranks: OnRanks, tmp_path: Path) -> None:
    def refused(rank: int, size: int) -> str:
        trainer = make_trainer(tmp_path, [(1.0, math.nan)], clip=0.0)
        trainer.train_step(BATCH, 0.0)
        with pytest.raises(UserError) as error:
            trainer.state.save()
        return str(error.value)

    (said,) = on_ranks(1, refused, tmp_path / "store")
    assert "are not saved" in said
    assert not (tmp_path / "checkpoints").exists()
