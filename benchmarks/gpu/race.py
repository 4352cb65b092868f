"""Training steps on batches that lie on the device: ours, the fewest lines, timm's and open_clip's."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.turns import alone, objective_and_batches, take_turns, tell_rates
from benchmarks.train_loops import bare, open_clip_loop, project, timm_loop

# Different batches that a loop goes through.
BATCHES = 4


def classes(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Race the loops of a classifier, compiled, each with the same network, batches and update."""
    recipe = sizes.recipe(compile=True)
    with alone() as world:
        tell_rates(recipe, sizes.classes, tell)
        objective, batches = objective_and_batches(recipe, sizes, BATCHES)
        contenders = {
            "bare": partial(bare, recipe, objective),
            "ours": partial(project, recipe, world, objective, folder),
            "timm": partial(timm_loop, recipe, objective),
        }
        take_turns(contenders, batches, sizes, tell)


def captions(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Race the loops of CLIP, not compiled."""
    recipe = sizes.clip_recipe()
    with alone() as world:
        tell_rates(recipe, 0, tell)
        objective, batches = objective_and_batches(recipe, sizes, BATCHES)
        contenders = {
            "bare": partial(bare, recipe, objective),
            "ours": partial(project, recipe, world, objective, folder),
            "open_clip": partial(open_clip_loop, recipe, objective),
        }
        take_turns(contenders, batches, sizes, tell)


def engines(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Race our own engines on the classifier, not compiled; fsdp keeps its weights contiguous."""
    recipe = dataclasses.replace(sizes.recipe(), optimizer=sizes.clip_recipe().optimizer)
    with alone() as world:
        tell_rates(recipe, sizes.classes, tell)
        objective, batches = objective_and_batches(recipe, sizes, BATCHES)
        contenders = {
            name: partial(project, recipe, world, objective, folder / name, name)
            for name in ("ddp", "fsdp", "deepspeed")
        }
        for name in contenders:
            (folder / name).mkdir(exist_ok=True)
        take_turns(contenders, batches, sizes, tell)
