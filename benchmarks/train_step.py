"""Time of a training step against a bare PyTorch loop and the loops of timm and open_clip.

    python benchmarks/train_step.py                       # ResNet-18, classes: bare loop, timm
    python benchmarks/train_step.py --objective clip      # a small CLIP, captions: bare loop, open_clip_train

All train the same network from the same weights on the same ready-made batches in one process, with
the same update, a round of steps of one and a round of the next in turn (the order changes from round
to round), so that whatever else the machine does falls on all; on a busy machine look at the CPU times.
Reading data is the matter of benchmarks/shards_read.py.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from train_loops import Round, bare, open_clip_loop, project, timm_loop, unwatched

from nml import cli
from nml.recipe import Data, Loss, Model, Optimizer, Recipe
from pretrain.assembly import build_objective, share_cores
from pretrain.engines.native import device_of_rank
from pretrain.loading import Batch
from pretrain.objective import Objective, Setting
from pretrain.world import World, join, leave

SMALL_CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 32, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4},
}
CLASSES = 10


def main() -> None:
    parser = cli.Parser(
        "python benchmarks/train_step.py", "A training step against bare PyTorch, timm and open_clip."
    )
    parser.add_argument("--objective", type=Literal["classify", "clip"], default="classify")
    parser.add_argument("--model", type=str, default="resnet18", help="timm model, for classify")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    recipe = make_recipe(options.objective, options.model, options.size, options.batch)
    world = World()
    join(world)
    share_cores(world)
    objective = build_objective(recipe, Setting(num_classes=CLASSES))
    batches = make_batches(objective, recipe, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Round] = {
            "project": project(recipe, world, objective, Path(folder)),
            "unwatched": unwatched(project(recipe, world, objective, Path(folder))),
            "bare": bare(recipe, objective),
        }
        if recipe.objective == "classify":
            contenders["timm"] = timm_loop(recipe, objective)
        else:
            contenders["open_clip"] = open_clip_loop(recipe, objective)
        times = race(contenders, batches, options.rounds)
    leave()
    name = options.model if recipe.objective == "classify" else "small CLIP"
    print(f"{name} at {options.size} px, batch {options.batch}, {torch.get_num_threads()} threads")
    print(f"{options.rounds} rounds of {options.steps} steps each")
    show(times, options.batch)


def make_recipe(objective: Literal["classify", "clip"], model: str, size: int, batch: int) -> Recipe:
    if objective == "clip":
        vision = {**SMALL_CLIP["vision_cfg"], "image_size": size}  # type: ignore[dict-item]
        return Recipe(
            objective="clip",
            epochs=1,
            global_batch=batch,
            model=Model(name="RN50-quickgelu", kwargs={**SMALL_CLIP, "vision_cfg": vision}),
            data=Data(size=size, test_size=size),
            loss=Loss(name="infonce"),
            optimizer=Optimizer(name="adamw", lr=1e-4, weight_decay=0.1),
        )
    return Recipe(
        epochs=1,
        global_batch=batch,
        model=Model(name=model),
        data=Data(size=size, test_size=size),
        optimizer=Optimizer(name="sgd", lr=0.01, weight_decay=5e-4),
    )


def make_batches(objective: Objective, recipe: Recipe, number: int) -> list[Batch]:
    """Return random batches, different ones."""
    generator = torch.Generator().manual_seed(0)
    size, batch = recipe.data.size, recipe.global_batch
    found = []
    for _ in range(number):
        images = torch.randn(batch, 3, size, size, generator=generator)
        labels = torch.randint(0, CLASSES, (batch,), generator=generator)
        if objective.text_transform is None:
            targets = labels
        else:
            words = torch.randint(0, 10**6, (batch, 8), generator=generator).tolist()
            targets = torch.stack([objective.text_transform(" ".join(map(str, line))) for line in words])
        truth = labels if objective.text_transform is None else labels.clamp(max=1)
        found.append(Batch(*(part.to(device_of_rank()) for part in (images, targets, labels, truth))))
    return found


class Times(NamedTuple):
    """Of a step, one value a round: seconds on the clock and of the processor, all threads together."""

    wall: list[float]
    cpu: list[float]


def race(contenders: dict[str, Round], batches: list[Batch], rounds: int) -> dict[str, Times]:
    """Return the times of each contender; a first round, for warming up, is left out."""
    times = {name: Times([], []) for name in contenders}
    for number in range(rounds + 1):
        names = list(contenders)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            contenders[name](batches)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].wall.append((time.perf_counter() - wall) / len(batches))
                times[name].cpu.append((time.process_time() - cpu) / len(batches))
    return times


def show(times: dict[str, Times], batch: int) -> None:
    """Print medians, and the median of the rounds' ratios with the smallest and the largest."""
    for clock in Times._fields:
        for name, found in times.items():
            values = getattr(found, clock)
            middle = statistics.median(values)
            line = f"{clock:5} {name:10} {1000 * middle:8.1f} ms a step, {batch / middle:7.1f} samples/s"
            if name != "project":
                ours = getattr(times["project"], clock)
                ratios = [one / other for one, other in zip(ours, values, strict=True)]
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                line += f", project / it: {statistics.median(ratios):.3f} ({spread})"
            print(line)


if __name__ == "__main__":
    cli.run(main)
