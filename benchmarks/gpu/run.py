"""A run as a user starts it, on images written for it: its pace, kill -9, then the same command."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.apart import Apart
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from nml import layout
from nml.curves import metrics_lines

# Steps between two saves, and beyond a save when it is killed: they are done again.
SAVE_EVERY, BEYOND = 48, 3
# The network meets the GPU in these processes first: CUDA does not live through a fork.
FORK = multiprocessing.get_context("fork")


def train_kill_resume(sizes: Sizes, folder: Path, tell: Tell) -> None:
    """Write a set, read it, train on it, kill the training, and let the same command go on to the end.

    Raises:
        RuntimeError: If a process ends otherwise, or the losses of steps that are done again differ.
    """
    start = time.perf_counter()
    source = folder / "images"
    numbers = [range(first, sizes.images, sizes.workers) for first in range(sizes.workers)]
    draw = partial(draw_images, source, side=sizes.image_side, classes=min(sizes.classes, sizes.images))
    with FORK.Pool(sizes.workers) as pool:
        size = sum(pool.map(draw, numbers))
    tell("draw_s", round(time.perf_counter() - start, 2))
    tell("image_kb", round(size / sizes.images / 1000, 1))
    from shards.write import main as write_shards

    shards = folder / "set"
    start = time.perf_counter()
    words = ["--source", f"imagefolder:{source}", "--noise", "0", "--out", str(shards)]
    write_shards([*words, "--workers", str(sizes.workers)])
    tell("write_s", round(time.perf_counter() - start, 2))
    apart = Apart()
    with apart("loader"):
        tell("loader_images_per_s", round(loader_rate(sizes, shards), 1))
    recipe = folder / "recipe.yaml"
    # In a process of its own: the GPU is not to be met in this one.
    trying = FORK.Process(target=_try_to_compile, args=(sizes, tell))
    trying.start()
    trying.join()
    values = dataclasses.asdict(sizes.recipe(compile=trying.exitcode == 0)) | {
        "checkpoints": {"every_epochs": 0, "every_steps": SAVE_EVERY}
    }
    recipe.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    run = folder / "run"
    command = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0", "--run-dir", str(run)]
    first = FORK.Process(target=_train, args=(command,))
    first.start()
    while first.is_alive() and not _beyond_a_save(run):
        time.sleep(0.01)
    first.kill()
    first.join()
    before, saved = _steps(run), layout.newest_step(run)
    if not saved or first.exitcode == 0:
        raise RuntimeError(f"it ended with {first.exitcode} before it could be killed; saved: step {saved}")
    tell("killed", {"at_step": len(before), "saved_step": saved, "pace": pace(before, sizes.warm)})
    start = time.perf_counter()
    second = FORK.Process(target=_train, args=(command,))
    second.start()
    while second.is_alive() and len(_steps(run)) != saved + 1 and not layout.is_done(run):
        time.sleep(0.01)
    tell("resumed_first_step_s", round(time.perf_counter() - start, 2))
    second.join()
    if second.exitcode:
        raise RuntimeError(f"the resumed run ended with {second.exitcode}")
    after = _steps(run)
    tell("resumed", {"steps": len(after), "pace": pace(after[saved:], sizes.warm)})
    again = [
        abs(old["loss"] - new["loss"]) / abs(old["loss"])
        for old, new in zip(before[saved:], after[saved:], strict=False)
    ]
    tell("steps_done_again", {"number": len(again), "largest_difference_of_loss": max(again)})
    # On a GPU the order of sums changes from run to run; another batch would change far more.
    if max(again) > 0.05:
        raise RuntimeError(f"losses of steps done again differ by {max(again):.1%}")
    apart.tell()


def draw_images(folder: Path, numbers: range, *, side: int, classes: int) -> int:
    """Write JPEGs, in a folder a class, that take as long to decode as photographs do; return their bytes."""
    import numpy as np
    from PIL import Image

    size = 0
    for number in numbers:
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 12, (side, side * 4 // 3, 1))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % classes:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)
        size += path.stat().st_size
    return size


def loader_rate(sizes: Sizes, shards: Path) -> float:
    """Return images/s of the training loader alone, while nothing else works."""
    from pretrain.loading import StepSampler, training_loader
    from pretrain.transforms import training_transform
    from pretrain.world import World
    from shards.dataset import ShardDataset
    from shards.shardset import ShardSet

    recipe, shard_set = sizes.recipe(), ShardSet.open(shards)
    dataset = ShardDataset(
        shard_set,
        shard_set.level(0.0).name,
        training_transform(recipe.data),
        _no_text,
        seed=0,
        with_truth=True,
    )
    sampler = StepSampler(shard_set, recipe, World(), 0)
    # What is ready before the clock runs is no part of the pace.
    ready = 3 * sizes.workers
    sampler.stop = ready + 2 * ready
    batches = iter(training_loader(dataset, sampler, workers=sizes.workers, pin_memory=False))
    for _ in range(ready):
        next(batches)
    start = time.perf_counter()
    for _ in range(2 * ready):
        next(batches)
    return 2 * ready * recipe.global_batch / (time.perf_counter() - start)


def _no_text(caption: str) -> int:  # noqa: ARG001 - a transform of captions
    return 0


def pace(steps: list[dict[str, Any]], warm: int) -> dict[str, float]:
    """Return medians over the steps after the first ``warm``, of what metrics.jsonl says of each."""
    names = ("samples_per_s", "images_per_s_device", "mfu", "step_s", "data_wait_s", "memory_mb")
    looked = steps[warm:] or steps
    return {
        name: statistics.median(line[name] for line in looked)
        for name in names
        if looked and looked[0].get(name) is not None
    }


def _try_to_compile(sizes: Sizes, tell: Tell) -> None:
    from benchmarks.gpu.turns import compiles

    sys.exit(0 if compiles(sizes, tell) else 1)


def _train(command: list[str]) -> None:
    from pretrain.run import main

    os.environ.pop("RANK", None)
    sys.exit(main(command))


def _steps(run: Path) -> list[dict[str, Any]]:
    path = run / layout.METRICS
    return [line for line in metrics_lines(path) if line["event"] == "step"] if path.exists() else []


def _beyond_a_save(run: Path) -> bool:
    saved = layout.newest_step(run)
    return bool(saved) and len(_steps(run)) >= saved + BEYOND
