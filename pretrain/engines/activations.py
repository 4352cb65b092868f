"""Activations that are computed again in the backward pass instead of being kept: memory for time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from nml.errors import UserError
from nml.recipe import Recipe
from pretrain.batchnorm import unchanged_statistics


def checkpoint_activations(network: nn.Module) -> None:
    """Have a network keep the inputs of its blocks alone, by timm's and open_clip's own switches.

    Raises:
        UserError: If the network, or a tower of it, has no such switch, or one that does nothing.
    """
    parts = list(_switched(network))
    for part in parts or [network]:
        try:
            part.set_grad_checkpointing(True)  # type: ignore[operator]
        # What timm's networks say that cannot; those of neither library have no switch.
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise _cannot(part) from error
        # open_clip's ResNet takes the word and does nothing.
        for tower in (getattr(part, "visual", part), getattr(part, "text", part)):
            if not any(getattr(module, "grad_checkpointing", False) is True for module in tower.modules()):
                raise _cannot(tower)


def computing_again(network: nn.Module, recipe: Recipe) -> AbstractContextManager[None]:
    """Surround a backward pass: what it computes again is not to count twice in running statistics."""
    return unchanged_statistics(network) if recipe.engine.checkpoint_activations else nullcontext()


def _switched(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have a switch."""
    if hasattr(module, "set_grad_checkpointing"):
        yield module
        return
    for child in module.children():
        yield from _switched(child)


def _cannot(network: nn.Module) -> UserError:
    return UserError(
        f"recipe.engine.checkpoint_activations true: {type(network).__name__} cannot compute its activations "
        "again",
        possible="timm's and open_clip's transformers, and most of timm's other networks",
        mend="set it to false; --recipe.engine.micro_batch saves memory with any network",
    )
