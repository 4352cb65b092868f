"""Every engine around a network of a few hundred weights, and a few steps of each."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from nml.recipe import Engine as EngineConfig
from nml.recipe import Optimizer, Recipe
from pretrain.engines import Engine, build_engine
from pretrain.noise_watch import NoiseWatch
from pretrain.presentations import Presentations
from pretrain.recording import Recorder
from pretrain.run_state import RunState
from pretrain.training import Trainer
from pretrain.world import World

ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
OPTIMIZERS = {
    "sgd": Optimizer(name="sgd", lr=0.05, clip=1.0),
    "adamw": Optimizer(name="adamw", lr=1e-3, weight_decay=0.05, clip=1.0),
    "lamb": Optimizer(name="lamb", lr=5e-3, weight_decay=0.02, clip=1.0),
}


class Block(nn.Module):
    """One of the parts that fsdp shards one by one."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.strength = strength

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)) * self.strength)


class Network(nn.Module):
    """A stem, blocks of which each differs by a number, as drop path makes those of a ResNet, and a head."""

    def __init__(self, more_blocks: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.block = Block()
        self.more = nn.Sequential(*(Block(0.5 + number / 100) for number in range(more_blocks)))
        self.head = nn.Linear(8, 4)
        self.logit_scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.more(self.block(self.stem(images))).mean((2, 3))) * self.logit_scale


def make(
    engine: str, *, accumulation: int = 1, optimizer: str = "sgd", more_blocks: int = 0, **config: object
) -> Engine:
    torch.manual_seed(0)
    return around(Network(more_blocks), engine, accumulation=accumulation, optimizer=optimizer, **config)


def around(
    network: nn.Module, engine: str, *, accumulation: int = 1, optimizer: str = "sgd", **config: object
) -> Engine:
    name, _, stage = engine.partition("-")
    values = EngineConfig(zero_stage=int(stage or 1), **config)  # type: ignore[arg-type]
    recipe = Recipe(global_batch=16, optimizer=OPTIMIZERS[optimizer], engine=values)
    return build_engine(name, network, recipe, accumulation=accumulation)  # type: ignore[arg-type]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(16, 3, 12, 12, generator=generator)
    return images, torch.randint(0, 4, (16,), generator=generator)


def train(engine: Engine, steps: range, *, micro_batches: int = 1) -> list[float]:
    """Take steps; return the losses and the gradients' norms."""
    told = []
    for step in steps:
        parts = zip(*(part.chunk(micro_batches) for part in batch(step)), strict=True)
        total = 0.0
        for number, (images, labels) in enumerate(parts):
            with engine.micro_step(last=number == micro_batches - 1):
                loss = nn.functional.cross_entropy(engine.forward(images).float(), labels) / micro_batches
                engine.backward(loss)
            total += loss.item()
        told += [total, engine.step(0.01).norm]
    return told


def trainer_without_data(
    recipe: Recipe,
    objective: Any,
    engine: Engine,
    folder: Path,
    *,
    steps_per_epoch: int = 10**6,
    shard_set: Any = None,
    presentations: Presentations | None = None,
) -> Trainer:
    """Return the trainer of a run whose batches a test makes.

    As it is, neither an epoch nor the whole ends within some steps.
    """
    sampler: Any = SimpleNamespace(steps_per_epoch=steps_per_epoch, state=lambda step: {"step": step})
    recorder = Recorder(
        folder,
        is_main=True,
        steps_per_epoch=sampler.steps_per_epoch,
        global_batch=recipe.global_batch,
        device=engine.device,
        started=time.perf_counter(),
        observers=[],
    )
    recorder.open(0)
    kind: Any = "caption" if recipe.objective == "clip" else "class"
    watch = NoiseWatch(kind, recipe.global_batch, engine.device, presentations=presentations)
    state = RunState(
        recipe,
        folder,
        World(),
        engine=engine,
        sampler=sampler,
        meta={},
        watch=watch,
        beside=objective.tensors(),
    )
    return Trainer(
        recipe,
        World(),
        engine=engine,
        objective=objective,
        sampler=sampler,
        shard_set=shard_set,
        validation=None,
        state=state,
        recorder=recorder,
    )
