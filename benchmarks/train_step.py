"""Time of a training step against a bare PyTorch loop with the same network, batches and update.

    python benchmarks/train_step.py [--model resnet18] [--size 64] [--batch 64] [--steps 30]

Both train the same network on the same ready-made batch in one process, a step of one and a step of
the other in turn, so that whatever else the machine does falls on both. The project's step is the
whole of it: loss, agreement of the ranks, update, metrics line.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nml import cli
from pretrain.engines.ddp import DdpEngine
from pretrain.loading import Batch
from pretrain.models import Architecture, build_network
from pretrain.objective import build_objective
from pretrain.recipe import Data, Model, Optimizer, Recipe
from pretrain.recording import Recorder
from pretrain.run_state import RunState
from pretrain.training import Trainer
from pretrain.world import World, join, leave


class OneBatchSampler:
    """Stands in for the order of the samples: there is one batch."""

    steps_per_epoch = 10**9


def main() -> None:
    parser = cli.Parser("python benchmarks/train_step.py", "Train step against a bare PyTorch loop.")
    parser.add_argument("--model", type=str, default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    recipe = Recipe(
        epochs=1,
        global_batch=options.batch,
        model=Model(name=options.model),
        data=Data(size=options.size, test_size=options.size),
        optimizer=Optimizer(name="sgd", lr=0.01, weight_decay=5e-4),
    )
    world = World()
    join(world)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    labels = torch.randint(0, 10, (options.batch,), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        ours = project_step(recipe, world, Batch(images, labels, labels), Path(folder))
        bare = bare_step(recipe, images, labels)
        times: dict[str, list[float]] = {"project": [], "bare": []}
        for _ in range(options.steps):
            times["project"].append(timed(ours))
            times["bare"].append(timed(bare))
    leave()
    # The first steps fill caches and allocate momentum.
    middle = {name: statistics.median(values[3:]) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["project"][3:], times["bare"][3:], strict=True)]
    print(f"{options.model} at {options.size} px, batch {options.batch}, {torch.get_num_threads()} threads")
    for name, seconds in middle.items():
        print(f"{name:8} {1000 * seconds:8.1f} ms a step, {options.batch / seconds:7.1f} samples/s")
    ratio = middle["project"] / middle["bare"]
    print(f"ratio of medians {ratio:.3f}, median ratio {statistics.median(ratios):.3f}")


def timed(step: object) -> float:
    start = time.perf_counter()
    step()  # type: ignore[operator]
    return time.perf_counter() - start


def project_step(recipe: Recipe, world: World, batch: Batch, folder: Path) -> object:
    objective = build_objective(
        recipe, rank=0, world_size=1, seed=0, micro_batches=1, num_classes=10, prompts=None
    )
    engine = DdpEngine(build_network(objective.architecture, 0), recipe)
    sampler: Any = OneBatchSampler()
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
    unused: Any = None
    trainer = Trainer(
        recipe,
        world,
        engine=engine,
        objective=objective,
        sampler=sampler,
        shard_set=unused,
        validation=None,
        state=RunState(recipe, folder, world, engine=engine, sampler=sampler, meta={}),
        recorder=recorder,
    )
    return lambda: trainer.train_step(batch, 0.0)


def bare_step(recipe: Recipe, images: torch.Tensor, labels: torch.Tensor) -> object:
    network = build_network(Architecture("timm", recipe.model.name, {"num_classes": 10}), 0)
    network.train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


if __name__ == "__main__":
    cli.run(main)
