"""Loops that take turns on the same batches, and what one of them reaches."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.apart import in_words, release_memory
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.train_loops import Round
from nml.recipe import Recipe
from pretrain.assembly import build_objective, share_cores
from pretrain.engines.native import device_of_rank
from pretrain.loading import Batch
from pretrain.objective import Objective, Setting
from pretrain.utilisation import flops_of_sample, peak_of
from pretrain.world import World, join, leave


@contextlib.contextmanager
def alone() -> Iterator[World]:
    """Be a process group of one."""
    world = World()
    join(world)
    share_cores(world)
    torch.backends.cudnn.benchmark = True
    try:
        yield world
    finally:
        leave()


def compiles(sizes: Sizes, tell: Tell) -> bool:
    """Return whether to compile: not where not even a sum is, for want of a compiler for example; told then.

    What is to be measured compiled is measured uncompiled there, which is better than not at all.
    """
    if not sizes.compile:
        return False
    try:
        values = torch.ones(8, device=device_of_rank())
        torch.compile(lambda them: (them * 2).sin() + 1)(values)
    except Exception as error:
        traceback.print_exc()
        tell("not compiled", in_words(error))
        return False
    return True


def tell_rates(recipe: Recipe, classes: int, tell: Tell) -> None:
    """Tell what turns a time into MFU."""
    tell("flops_of_sample", flops_of_sample(recipe, classes))
    tell("peak_flops", peak_of(device_of_rank(), recipe.engine.dtype))
    tell("batch", recipe.global_batch)


def objective_and_batches(recipe: Recipe, sizes: Sizes, number: int) -> tuple[Objective, list[Batch]]:
    """Return an objective and random batches on the device, in the layout of the recipe."""
    classes = sizes.classes if recipe.objective == "classify" else 0
    objective = build_objective(recipe, Setting(num_classes=classes))
    device, size = device_of_rank(), recipe.global_batch
    layout = torch.channels_last if recipe.engine.channels_last else torch.contiguous_format
    generator, side = torch.Generator().manual_seed(0), recipe.data.size
    drawn = torch.Generator(device).manual_seed(0)
    batches = []
    for _ in range(number):
        images = torch.randn(size, 3, side, side, device=device, generator=drawn)
        targets = torch.randint(0, classes or 10**6, (size,), generator=generator)
        if objective.text_transform is not None:
            targets = torch.stack([objective.text_transform(str(word)) for word in targets.tolist()])
        placed = images.contiguous(memory_format=layout)
        batches.append(Batch(placed, targets.to(device), torch.arange(size)))
    return objective, batches


def take_turns(
    contenders: dict[str, Callable[[], Round]], batches: list[Batch], sizes: Sizes, tell: Tell
) -> None:
    """Build and warm up one loop after another, then let them take turns; tell the times after each turn.

    Of each loop is told under its name: ``warm_s``, building, compiling and the first steps; ``step_ms``, one
    value a turn; ``memory_mb``, the device's peak while it worked, with what the other loops hold; ``error``,
    if it failed, which leaves the others.
    """
    loops: dict[str, Round] = {}
    told: dict[str, dict[str, Any]] = {name: {"step_ms": []} for name in contenders}

    def turn(name: str, number: int) -> float | None:
        try:
            reset_memory()
            return seconds_of(loops[name], [batches[step % len(batches)] for step in range(number)])
        except Exception as error:
            traceback.print_exc()
            told[name]["error"] = in_words(error)
            del loops[name]
        # The others may need its memory, where it had too little.
        release_memory()
        return None

    for name, make in contenders.items():
        start = time.perf_counter()
        try:
            loops[name] = make()
        except Exception as error:
            traceback.print_exc()
            told[name]["error"] = in_words(error)
        if name in loops and turn(name, sizes.warm) is not None:
            told[name]["warm_s"] = round(time.perf_counter() - start, 2)
        tell(name, told[name])
    for number in range(sizes.rounds):
        # Who goes first changes, and with it who meets a cooler device.
        names = list(loops)[number % max(1, len(loops)) :] + list(loops)[: number % max(1, len(loops))]
        for name in names:
            spent = turn(name, sizes.steps)
            if spent is not None:
                told[name]["step_ms"].append(round(1000 * spent / sizes.steps, 3))
                told[name]["memory_mb"] = memory_mb()
            tell(name, told[name])
    if failed := [f"{name}: {found['error']}" for name, found in told.items() if "error" in found]:
        raise RuntimeError("; ".join(failed))


def seconds_of(work: Callable[..., object], *arguments: Any) -> float:
    """Return how long a call takes until the device is done with it."""
    synchronize()
    start = time.perf_counter()
    work(*arguments)
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_memory() -> None:
    """Begin to look for the peak of the device's memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def memory_mb() -> int | None:
    """Return the device's peak; None on a CPU."""
    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None
