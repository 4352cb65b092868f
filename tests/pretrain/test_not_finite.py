"""Steps that are not finite change nothing, are counted, and never reach a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nml.curves import metrics_lines
from nml.errors import UserError
from nml.recipe import Optimizer, Recipe
from pretrain import agreement
from pretrain.engines import Tensors
from pretrain.engines.ddp import DdpEngine
from pretrain.loading import Batch
from pretrain.noise_watch import NoiseWatch
from pretrain.run_state import RunState
from pretrain.training import Trainer
from pretrain.world import World
from tests.pretrain.ranks import Ranks
from tests.pretrain.small_engines import trainer_without_data
from tests.pretrain.struck import STRUCK

OnRanks = Callable[..., list[Any]]

STEPS = 6
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
PARTS = ["--recipe.engine.micro_batch", "8"]
CASES = {
    **{engine: [] for engine in ENGINES},
    "ddp, synchronised": ["--recipe.model.batch_norm", "sync"],
    "deepspeed-2, in parts": PARTS,
    # On two ranks each has a copy of all weights.
    "fsdp, in groups and parts": [
        *PARTS,
        *("--recipe.engine.shard_group", "1", "--recipe.engine.checkpoint_activations", "true"),
    ],
    # Heard of two steps later, as on a GPU. torch's fused rules do not know what float64 is called here.
    **{f"{engine}, late": ["--recipe.optimizer.name", "lamb"] for engine in ("ddp", "fsdp")},
}
# On several ranks sums are taken in whatever order messages come.
BOUND = {1: 0.0, 2: 1e-12}


@pytest.fixture(scope="module")
def struck(
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    start_ranks: Callable[..., Ranks],
    tiny_resnet: dict[str, Any],
) -> Path:
    """Runs with steps that are not finite, and runs without these steps; see struck.py."""
    recipe = make_recipe(
        "struck",
        model=tiny_resnet,
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0},
        global_batch=48,
        epochs=1,
    )
    started: list[Ranks] = []
    for world in BOUND:
        for way in ("struck", "absent"):
            commands = [["strike", way]]
            for case, more in CASES.items():
                name, _, stage = case.partition(",")[0].partition("-")
                run = work / "not-finite" / f"{case}-{world}-{way}"
                words = ["--recipe", str(recipe), "--shards", str(image_set), "--noise", "0", *more]
                words += ["--engine", name, *(["--recipe.engine.zero_stage", stage] if stage else [])]
                words += ["--recipe.ema", "0" if stage == "3" else "0.9", "--run-dir", str(run)]
                commands += [["lag", "2" if "late" in case else "0"], words]
            started.append(start_ranks(world, *commands, cwd=work, double=world > 1))
    for ranks in started:
        status, out = ranks.end()
        assert status == 0, out
    return work / "not-finite"


@pytest.mark.parametrize("world", BOUND)
@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_leaves_nothing_behind(
    struck: Path, case: str, world: int, weights: Callable[..., Any]
) -> None:
    one, other = (struck / f"{case}-{world}-{way}" for way in ("struck", "absent"))
    told, expected = (
        {line["step"]: line for line in metrics_lines(run / "metrics.jsonl") if line["event"] == "step"}
        for run in (one, other)
    )
    assert sorted(told) == [*range(1, STEPS + 1)]
    assert set(told) - set(expected) == {step + 1 for step in STRUCK}
    for step, line in expected.items():
        assert told[step]["loss"] == pytest.approx(line["loss"], rel=BOUND[world], abs=0)
    # Only the first of them shows in the loss.
    assert [told[step + 1]["loss"] is None for step in STRUCK] == [True, False, False]
    assert told[STEPS]["lost_s"]["left_out"] > 0
    found, exported = weights(one), weights(other)
    for name in exported:
        assert np.isfinite(exported[name]).all()
        np.testing.assert_allclose(
            found[name], exported[name], rtol=BOUND[world], atol=BOUND[world], err_msg=name
        )


class Scripted:
    """An objective whose loss and gradient are given for each step."""

    text_transform = None
    seen = None

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self._steps = steps

    def backward(self, engine: DdpEngine, batch: Batch, step: int) -> torch.Tensor:
        loss, gradient = self._steps[step]
        for parameter in engine.network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        return torch.tensor(loss)

    def after_step(self, engine: DdpEngine, step: int) -> None: ...

    def tensors(self) -> Tensors:
        return {}


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
    keys = SimpleNamespace(index=SimpleNamespace(place=lambda index: SimpleNamespace(key=f"image-{index}")))
    # One step more than is scripted: the learning rate never reaches 0.
    return trainer_without_data(
        recipe, Scripted(steps), engine, folder, steps_per_epoch=len(steps) + 1, shard_set=keys
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
    assert [line["loss"] for line in metrics_lines(tmp_path / "metrics.jsonl")] == [1.0, None, None, 1.0]


def test_a_gradient_that_is_not_finite_is_skipped_where_it_is_clipped(
    on_ranks: OnRanks, tmp_path: Path
) -> None:
    steps = [(1.0, 1.0), (1.0, math.inf), (1.0, math.nan), (1.0, 1.0)]
    ((weights, skipped),) = on_ranks(1, weights_after, tmp_path / "store", tmp_path, steps, 1.0)
    assert skipped == [0, 1, 2, 0]
    assert weights[0] == weights[1] == weights[2]
    assert math.isfinite(weights[3])


@pytest.mark.parametrize("lag", [0, 2])
def test_one_too_many_stops_with_the_step_and_the_keys(lag: int, on_ranks: OnRanks, tmp_path: Path) -> None:
    def stopped(rank: int, size: int) -> str:
        agreement.LAG["cpu"] = lag
        steps = [(math.nan, 1.0)] * 3 + [(1.0, 1.0)] * lag
        trainer = make_trainer(tmp_path, steps, clip=0.0, skip=2)
        for number in range(2 + lag):
            # Later batches are others.
            trainer.train_step(BATCH if number < 3 else BATCH._replace(indices=torch.tensor([1, 2])), 0.0)
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


def test_nothing_else_that_is_not_finite_is_saved(on_ranks: OnRanks, tmp_path: Path) -> None:
    def refused(rank: int, size: int) -> str:
        network = nn.BatchNorm2d(2)
        network.register_buffer("mask", torch.full((2,), -math.inf))
        recipe = Recipe(ema=0.9)
        engine = DdpEngine(network, recipe)
        watch = NoiseWatch("class", 2, engine.device)
        state = RunState(recipe, tmp_path, World(size), engine=engine, sampler=Any, meta={}, watch=watch)
        network(torch.ones(2, 2, 1, 1)).sum().backward()
        engine.step(0.1)
        # Those of one rank are enough.
        if rank == 1:
            network.running_var[0] = math.inf
            state.average.statistics["running_mean"][0] = math.nan  # type: ignore[union-attr]
            next(iter(engine.moments()))[0] = math.nan
        with pytest.raises(UserError) as error:
            state.save()
        return str(error.value)

    for said in on_ranks(2, refused, tmp_path / "store"):
        assert "running statistics and averaged weights and the optimizer's state are infinite or NaN" in said
