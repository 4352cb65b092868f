"""A teacher: an average of the network that is trained, saved with the run and never exported."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from nml.recipe import Recipe
from pretrain.batchnorm import mean_over_ranks, moving_buffers
from pretrain.engines import Engine, Tensors
from pretrain.engines.native import device_of_rank, precision


class Teacher:
    """Weights and running statistics that follow those of a network, whole and equal on every rank.

    It normalises by its running statistics (Cai et al. 2021), so that what it says of an image depends on no
    other image of the batch: nothing has to be shuffled between ranks, and parts of a batch are as good as
    the whole. The momentum warms up as min(momentum, (1 + step) / (10 + step)), as that of ``recipe.ema``.

    Args:
        network: The network, as it begins.
        recipe: The recipe.
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.network = copy.deepcopy(network).to(device_of_rank()).eval().requires_grad_(False)
        self._recipe = recipe
        if recipe.engine.channels_last:
            self.network.to(memory_format=torch.channels_last)
        # Masks of attention and counts of batches have no average.
        self._moving = set(moving_buffers(self.network))

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Return the teacher's output, under the recipe's autocast, without gradients."""
        with torch.no_grad(), precision(self._recipe, inputs[0].device):
            return self.network(*inputs)

    def follow(self, engine: Engine, *, momentum: float, step: int) -> None:
        """Take the weights after step number ``step`` (0 is the first) into account. Collective."""
        share = 1 - min(momentum, (1 + step) / (10 + step))
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, weight in engine.whole_weights():
                own[name].lerp_(weight.to(own[name].dtype), share)
            statistics = mean_over_ranks(dict(engine.network.named_buffers()))
            for name, buffer in self.network.named_buffers():
                new = statistics[name]
                buffer.lerp_(new, share) if name in self._moving else buffer.copy_(new)

    def tensors(self) -> Tensors:
        """Return all of it, by name; see :meth:`pretrain.objective.Objective.tensors`."""
        return {f"teacher/{name}": tensor for name, tensor in self.network.state_dict().items()}
