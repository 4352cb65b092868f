"""Values of a recipe that have no effect in the run they are in, or not the one that they say: one line each.

They are no mistake of the recipe's, which is the same on any engine, number of processes and set of data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nml.recipe import Recipe
from nml.recipe_effects import default_of
from nml.run_options import EngineName
from pretrain.schedule import warmup_steps


def idle_in_run(
    recipe: Recipe, *, engine: EngineName, world_size: int, steps_per_epoch: int, validated: bool
) -> Iterator[str]:
    """Yield a line for each value that has no effect in this run, or not the one that it says.

    Args:
        recipe: The recipe.
        engine: How processes share the work.
        world_size: Number of processes.
        steps_per_epoch: Of the recipe on the data.
        validated: Whether there is anything to validate on.
    """
    config, schedule, saved = recipe.engine, recipe.schedule, recipe.checkpoints
    total, warmup = recipe.epochs * steps_per_epoch, warmup_steps(recipe, steps_per_epoch)
    if engine != "deepspeed" and config.zero_stage != default_of(recipe, "engine.zero_stage"):
        yield f"recipe.engine.zero_stage {config.zero_stage}: no effect with --engine {engine}"
    if config.micro_batch >= recipe.global_batch // world_size:
        yield (
            f"recipe.engine.micro_batch {config.micro_batch}: no effect, a process has "
            f"{recipe.global_batch // world_size} samples a step"
        )
    if recipe.model.batch_norm == "sync" and world_size == 1:
        yield "recipe.model.batch_norm sync: no effect in one process"
    if recipe.validate_every != default_of(recipe, "validate_every") and not validated:
        yield f"recipe.validate_every {recipe.validate_every}: no effect without a --validation set"
    if warmup <= 1 and (schedule.warmup_epochs or schedule.warmup_steps):
        yield (
            f"recipe.schedule: no effect of the warm-up, which is {warmup} steps long where an epoch has "
            f"{steps_per_epoch}"
        )
    elif warmup >= total:
        yield (
            f"recipe.schedule: the warm-up takes {warmup} steps and the run {total}, so that it ends below "
            f"recipe.optimizer.lr {recipe.optimizer.lr} and before the schedule {schedule.name} begins"
        )
    # The average's own warm-up, see pretrain.ema.
    reached = (1 + total) / (10 + total)
    if recipe.ema > reached:
        yield f"recipe.ema {recipe.ema}: within {total} steps the same as any decay from {reached:.4g} on"
    if saved.keep_every and not any(
        period and math.lcm(period, saved.keep_every) <= total
        for period in (saved.every_steps, saved.every_epochs * steps_per_epoch)
    ):
        yield f"recipe.checkpoints.keep_every {saved.keep_every}: no effect, no step saved is a multiple"
