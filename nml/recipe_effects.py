"""Values of a recipe that could not matter beside its other values, refused.

A value that changes nothing is a mistake: whoever wrote it believes that it does. A field at its default is
not held to have been written. What only the run tells is said by :func:`pretrain.assembly.idle_in_run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nml.errors import UserError
from nml.objectives import declared

if TYPE_CHECKING:
    from nml.recipe import Recipe


def refuse_idle(recipe: Recipe) -> None:
    """Refuse values that have no effect beside the recipe's other values.

    Raises:
        UserError: Naming all of them, each with what takes its effect away.
    """
    found: dict[str, str] = {}
    for name, why in _idle(recipe):
        if value_of(recipe, name) != default_of(recipe, name):
            found.setdefault(name, why)
    if found:
        whats = (f"recipe.{name} {value_of(recipe, name)}: no effect {why}" for name, why in found.items())
        mends = (f"--recipe.{name} {_shown(default_of(recipe, name))}" for name in found)
        raise UserError("; ".join(whats), mend=f"use {' '.join(mends)}")


def _idle(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the fields that nothing reads, with the reason, whatever their values."""
    loss, data, rule, schedule = recipe.loss, recipe.data, recipe.optimizer, recipe.schedule
    read = ("name", *declared(recipe.objective).loss_fields)
    for field in fields(loss):
        if field.name not in read:
            yield f"loss.{field.name}", f"with recipe.objective {recipe.objective}"
    if data.crop != "rrc":
        yield "data.scale", f"with recipe.data.crop {data.crop}"
    elif data.auto_augment and "3a" not in data.auto_augment:
        # timm leaves it out beside a policy that jitters colours itself.
        yield "data.color_jitter", f"beside recipe.data.auto_augment {data.auto_augment}"
    if data.repeats == 1:
        yield "data.repeats_on", "without recipe.data.repeats"
    if not data.color_jitter:
        yield "data.jitter_hue", "without recipe.data.color_jitter"
        yield "data.jitter_prob", "without recipe.data.color_jitter"
    if not (loss.mixup and loss.cutmix):
        yield "loss.switch", "unless both recipe.loss.mixup and recipe.loss.cutmix are on"
    elif loss.switch in (0, 1):
        yield "loss.mixup" if loss.switch else "loss.cutmix", f"with recipe.loss.switch {loss.switch}"
    if loss.name != "bce":
        yield "loss.bce_threshold", f"with recipe.loss.name {loss.name}"
    elif not (loss.mixup or loss.cutmix):
        yield "loss.bce_threshold", "on targets that neither recipe.loss.mixup nor recipe.loss.cutmix mixes"
    for option in ("gce_q", "sce_alpha", "sce_beta", "sce_zero"):
        if not option.startswith(loss.name):
            yield f"loss.{option}", f"with recipe.loss.name {loss.name}"
    if loss.bce_threshold is not None:
        yield (
            "loss.smoothing",
            f"beside recipe.loss.bce_threshold {loss.bce_threshold}, which makes targets 0 or 1 again",
        )
    for name in ("betas", "eps") if rule.name == "sgd" else ("momentum",):
        yield f"optimizer.{name}", f"with recipe.optimizer.name {rule.name}"
    if not recipe.engine.compile:
        yield "engine.compile_mode", "without recipe.engine.compile"
    if schedule.name == "constant":
        yield "schedule.min_lr", "with recipe.schedule.name constant"
    if not (schedule.warmup_epochs or schedule.warmup_steps):
        yield "schedule.warmup_lr", "without recipe.schedule.warmup_epochs or recipe.schedule.warmup_steps"


def value_of(recipe: Recipe, name: str) -> Any:
    """Return the value of a field by its dotted name."""
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def default_of(recipe: Recipe, name: str) -> Any:
    """Return the default of a field by its dotted name."""
    group, _, last = name.rpartition(".")
    owner = value_of(recipe, group) if group else recipe
    return next(field.default for field in fields(owner) if field.name == last)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return f"'{list(value)}'" if isinstance(value, tuple) else str(value)
