"""The scale of the loss in fp16, and what a step is that was taken to find it."""

from __future__ import annotations

import math

import torch

from pretrain.engines import Update


class LossScale(torch.amp.GradScaler):
    """torch's scaler, and what became of a step by its rule.

    It leaves out a step that overflowed, and scales less from then on. That is how it finds its scale. Below
    1 it is not the scale that overflows.
    """

    def taken(self, optimizer: torch.optim.Optimizer, norm: float) -> Update:
        """Update the weights, unless a gradient overflowed.

        Args:
            optimizer: The optimizer.
            norm: Norm of the gradient before clipping, 0 where it is not asked for.
        """
        before = self.get_scale()
        self.step(optimizer)
        self.update()
        after = self.get_scale()
        if after < min(before, 1.0):
            return Update(math.inf, applied=False)
        return Update(norm if math.isfinite(norm) else 0.0, applied=after >= before)

    def to_be_taken(self, norm: torch.Tensor, trains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Say on the device what :meth:`taken` says, without the update, after ``unscale_``.

        Args:
            norm: Norm of the gradient, as there, a scalar on the device.
            trains: Whether the step is one to learn from, a bool scalar on the device. Where not, the scale
                stays as it is.

        Returns:
            What :class:`pretrain.engines.Update` holds, scalars on the device.
        """
        assert self._scale is not None
        assert self._growth_tracker is not None
        before, tracker = self._scale.clone(), self._growth_tracker.clone()
        self.update()
        self._scale.copy_(torch.where(trains, self._scale, before))
        self._growth_tracker.copy_(torch.where(trains, self._growth_tracker, tracker))
        lost = self._scale < before.clamp(max=1.0)
        told = torch.where(lost, math.inf, norm.nan_to_num(0.0, 0.0, 0.0))
        return told, trains & (self._scale >= before)
