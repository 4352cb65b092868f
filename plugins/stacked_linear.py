"""A linear layer whose products are fast for a stack of many copies."""

from __future__ import annotations

from torch import Tensor, nn


class StackedLinear(nn.Linear):
    """``nn.Linear``, computed as (W x^T)^T.

    Under ``torch.vmap`` the layer becomes a batched product of [M, I] with [I, O] a copy, and its gradient
    one of [I, M] with [M, O]. Where O is a few classes, both run at a third of the speed of the same products
    the other way round (45 copies, M = 64, I = 2048, O = 10, one core: 27 ms against 9). Turned round, the
    gradient of the weights also comes in the layout of the weights, which the fused AdamW needs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [M, O] for [M, I]."""
        if input.ndim != 2:
            return super().forward(input)
        result = (self.weight @ input.mT).mT
        return result if self.bias is None else result + self.bias


def stack_linear_layers(module: nn.Module) -> None:
    """Make the linear layers of a module, in place, such that ``torch.vmap`` over copies of it is fast."""
    for part in module.modules():
        # A subclass has a forward of its own, which must stay.
        if type(part) is nn.Linear:
            part.__class__ = StackedLinear
