"""An exponential moving average of the weights, beside whichever engine trains them."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.batchnorm import moving_buffers
from pretrain.engines import local


class Average:
    """Shadow weights w <- decay w + (1 - decay) weights, shard by shard where weights are sharded.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that short runs are not held back
    by their first weights. Running statistics are averaged too, as timm does: those of the latest weights
    do not fit the average of many.

    Attributes:
        shadow: The averaged parameters.
        statistics: The averaged buffers, this rank's own.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        self.statistics = {name: buffer.detach().clone() for name, buffer in moving_buffers(network).items()}

    def tensors(self) -> list[torch.Tensor]:
        """Return all that is averaged."""
        return [*self.shadow.values(), *self.statistics.values()]

    def update(self, network: nn.Module, step: int, applied: torch.Tensor | None = None) -> None:
        """Take the weights after ``step`` updates into account.

        Args:
            network: The network.
            step: The updates so far.
            applied: Whether to do so, a bool scalar on the device; None to do so. Where not, weights and
                buffers are finite all the same.
        """
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        weights = [local(parameter) for _, parameter in network.named_parameters()]
        _follow([local(average) for average in self.shadow.values()], weights, share, applied)
        if self.statistics:
            buffers = dict(network.named_buffers())
            current = [buffers[name] for name in self.statistics]
            _follow(list(self.statistics.values()), current, share, applied)


def _follow(
    averages: list[torch.Tensor], values: list[torch.Tensor], share: float, applied: torch.Tensor | None
) -> None:
    if applied is None:
        torch._foreach_lerp_(averages, values, share)
        return
    ways = torch._foreach_sub(values, averages)
    torch._foreach_mul_(ways, applied * share)
    torch._foreach_add_(averages, ways)
