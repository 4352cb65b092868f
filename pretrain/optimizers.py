"""Optimizers and the parameters that decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nml.recipe import Optimizer, Recipe


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels decay; biases, norms and scalars do not."""
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    free = [parameter for name, parameter in trained if not _decays(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # logit_scale is [1] under fsdp, which refuses scalars; its name settles it everywhere.
    return parameter.ndim > 1 and "logit_scale" not in name


def build_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over parameter groups."""
    config: Optimizer = recipe.optimizer
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    from timm.optim import Lamb

    # Lamb would clip by itself; clipping is the engine's, once, over all ranks' parameters.
    return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, max_grad_norm=None)
