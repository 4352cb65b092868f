"""Optimizers and the parameters that decay."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from nml.objectives import declared
from nml.recipe import Optimizer, Recipe


def recipe_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the groups of a network that a recipe trains.

    timm's networks name parameters that they want spared, such as positions and relative position biases.
    open_clip's training does not ask its towers for theirs, and neither is it done here.
    """
    ours = declared(recipe.objective).library == "timm"
    spared = getattr(network, "no_weight_decay", set) if ours else set
    return parameter_groups(network.named_parameters(), recipe.optimizer.weight_decay, spared=spared())


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, *, spared: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels decay; biases, norms, scalars and what is ``spared`` do not.

    They are those of timm's ``param_groups_weight_decay``.

    Args:
        parameters: Names and parameters.
        weight_decay: Of those that decay.
        spared: Names, or patterns of them, as timm's ``no_weight_decay`` gives them.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter, spared)]
    free = [parameter for name, parameter in trained if not _decays(name, parameter, spared)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _decays(name: str, parameter: nn.Parameter, spared: Collection[str]) -> bool:
    # logit_scale is [1] under fsdp, which refuses scalars; its name settles it everywhere.
    if parameter.ndim <= 1 or name.endswith(".bias") or "logit_scale" in name:
        return False
    return not any(fnmatch(name, pattern) for pattern in spared)


def build_optimizer(
    recipe: Recipe, groups: list[dict[str, Any]], *, on_device: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over parameter groups.

    Args:
        recipe: The recipe.
        groups: The groups.
        on_device: Whether it is to read ``found_inf``, see :mod:`pretrain.device_optimizers`.
    """
    config: Optimizer = recipe.optimizer
    adam: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    sgd: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.momentum > 0}
    # Lamb would clip by itself; clipping is the engine's, once, over all ranks' parameters.
    lamb = adam | {"max_grad_norm": None}
    if on_device:
        from pretrain.device_optimizers import DeviceLamb, DeviceSGD

        if config.name == "sgd":
            return DeviceSGD(groups, **sgd)
        if config.name == "adamw":
            return torch.optim.AdamW(groups, **adam, fused=True)
        return DeviceLamb(groups, **lamb)
    if config.name == "sgd":
        return torch.optim.SGD(groups, **sgd)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **adam)
    from timm.optim import Lamb

    return Lamb(groups, **lamb)
