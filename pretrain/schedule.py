"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from nml.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of ``step`` (0 is the first): linear warm-up, then the schedule."""
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    warmup = warmup_steps(recipe, steps_per_epoch)
    if step < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * (step + 1) / warmup
    if schedule.name == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    return schedule.min_lr + (peak - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the length of the warm-up, in steps."""
    return recipe.schedule.warmup_steps + round(recipe.schedule.warmup_epochs * steps_per_epoch)
