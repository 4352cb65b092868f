"""Training steps on batches that lie on the device: ours, the fewest lines, timm's and open_clip's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.turns import alone, compiles, objective_and_batches, take_turns, tell_rates
from benchmarks.train_loops import Round, bare, open_clip_loop, project, timm_loop
from nml.recipe import Recipe
from pretrain.engines.native import device_of_rank
from pretrain.loading import Batch
from pretrain.upload import Uploader, uploaded

# Different batches that a loop goes through.
BATCHES = 4


def classes(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Race the loops of a classifier, compiled where that can be: same network, batches and update."""
    with alone() as world:
        recipe = sizes.recipe(compile=compiles(sizes, tell))
        tell_rates(recipe, sizes.classes, tell)
        objective, batches = objective_and_batches(recipe, sizes, BATCHES)
        uploading = folder / "uploading"
        uploading.mkdir()
        contenders = {
            "bare": partial(bare, recipe, objective),
            "ours": partial(project, recipe, world, objective, folder),
            "timm": partial(timm_loop, recipe, objective),
            "ours, uploading": partial(
                _uploading, recipe, sizes, partial(project, recipe, world, objective, uploading)
            ),
        }
        take_turns(contenders, batches, sizes, tell)


def _uploading(recipe: Recipe, sizes: Sizes, make: Callable[[], Round]) -> Round:
    """Return our loop on batches as a loader gives them, uint8 in pinned memory, copied beside the steps."""
    own, device = make(), device_of_rank()
    upload = Uploader(recipe, device)
    generator, side = torch.Generator().manual_seed(0), recipe.data.size
    shape = (recipe.global_batch, 3, side, side)
    batches = []
    for _ in range(BATCHES):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, sizes.classes, shape[:1], generator=generator)
        parts = [part.pin_memory() if device.type == "cuda" else part for part in (images, labels)]
        batches.append(Batch(*parts, torch.arange(len(labels))))
    return lambda turn: own(uploaded(islice(cycle(batches), len(turn)), upload, device))


def captions(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Race the loops of CLIP, not compiled."""
    sizes = sizes.fewer()
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
    sizes = sizes.fewer()
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
