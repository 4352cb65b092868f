"""An exponential moving average of the weights, beside whichever engine trains them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pretrain.batchnorm import set_statistics, unchanged_statistics


class Average:
    """Shadow weights w <- decay w + (1 - decay) weights, shard by shard where weights are sharded.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that short runs are not held back
    by their first weights. Running statistics are averaged too, as timm does: those of the latest weights
    do not fit the average of many.

    Attributes:
        shadow: The averaged parameters.
        statistics: The averaged buffers of floating dtype, this rank's own.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        self.statistics = {name: buffer.detach().clone() for name, buffer in _statistics(network).items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after ``step`` updates into account."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [local(parameter) for _, parameter in network.named_parameters()]
        torch._foreach_lerp_([local(average) for average in self.shadow.values()], weights, 1 - decay)
        if self.statistics:
            current = list(_statistics(network).values())
            torch._foreach_lerp_(list(self.statistics.values()), current, 1 - decay)

    @contextmanager
    def in_place(self, network: nn.Module) -> Iterator[None]:
        """Let the network carry the average inside the block."""
        kept = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        _copy(network, self.shadow)
        with unchanged_statistics(network):
            set_statistics(network, self.statistics)
            try:
                yield
            finally:
                _copy(network, kept)


def local(parameter: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a parameter, without its gradient."""
    tensor = parameter.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}


def _copy(network: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in network.named_parameters():
        local(parameter).copy_(local(values[name]))
