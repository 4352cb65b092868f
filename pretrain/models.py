"""Build the network of a recipe, the same on every rank."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import nn

from nml.errors import UserError, unknown_name
from nml.objectives import declared
from nml.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What rebuilds a network without this project: ``LIBRARY.create_model(name, **kwargs)``."""

    library: str
    name: str
    kwargs: dict[str, Any]


def architecture(recipe: Recipe, num_classes: int) -> Architecture:
    """Return what the encoder of a recipe is called; with ``num_classes`` 0 it ends in its features.

    Raises:
        UserError: If the library has no such model.
    """
    if declared(recipe.objective).library == "open_clip":
        import open_clip

        if recipe.model.name not in open_clip.list_models():
            raise unknown_name("recipe.model.name", recipe.model.name, open_clip.list_models())
        return Architecture("open_clip", recipe.model.name, dict(recipe.model.kwargs))
    import timm

    if not timm.is_model(recipe.model.name):
        raise unknown_name("recipe.model.name", recipe.model.name, timm.list_models())
    return Architecture("timm", recipe.model.name, {"num_classes": num_classes, **recipe.model.kwargs})


def build_network(arch: Architecture, seed: int) -> nn.Module:
    """Return the network with fresh weights that depend on ``seed`` alone.

    Raises:
        UserError: If the library does not take the arguments.
    """
    torch.manual_seed(seed)
    try:
        if arch.library == "open_clip":
            import open_clip

            # It warns on the root logger that the weights are random, as they are meant to be.
            logging.disable(logging.WARNING)
            # fully_shard refuses scalars; exports hold scalars again, as open_clip builds them.
            network: nn.Module = open_clip.create_model(
                arch.name, output_dict=True, nonscalar_logit_scale=True, pretrained_text=False, **arch.kwargs
            )
        else:
            import timm

            network = timm.create_model(arch.name, **arch.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"recipe.model.kwargs {arch.kwargs}: {arch.name} does not take them: {error}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return network
