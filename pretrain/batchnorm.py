"""Batch normalisation over several processes: whose statistics, and when.

Running statistics never influence a training step, so each rank keeps its own while training, and
validation and exports use their average. Nothing is broadcast every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nml.errors import UserError
from nml.recipe import BatchNormMode


def prepare(network: nn.Module, mode: BatchNormMode) -> nn.Module:
    """Return the network with the batch normalisation that a recipe asks for.

    Raises:
        UserError: If the network has none of which that could be asked.
    """
    if mode != "local" and not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UserError(
            f"recipe.model.batch_norm {mode}: no effect, the network has no batch normalisation",
            mend="--recipe.model.batch_norm local",
        )
    if mode == "sync":
        return _share_statistics(network)
    return network


def set_training(network: nn.Module, mode: BatchNormMode) -> None:
    """Put the network in training mode; frozen statistics stay as they are."""
    network.train()
    if mode == "frozen":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _share_statistics(network: nn.Module) -> nn.Module:
    if torch.cuda.is_available():
        from timm.layers import convert_sync_batchnorm

        shared: nn.Module = convert_sync_batchnorm(network)
        return shared
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
        elif isinstance(module, _BatchNorm):
            raise UserError(
                f"recipe.model.batch_norm sync: {name} is a {type(module).__name__}",
                possible="networks with BatchNorm2d alone, where there is no GPU",
                mend="train on GPUs, or set it to local",
            )
    return network


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """Synchronised batch normalisation where torch's own, which needs a GPU, is not to be had."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [N, C, H, W] by the statistics of all ranks' samples; N is equal on all ranks."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        world = dist.get_world_size()
        count = input.numel() // input.shape[1] * world
        # Under autocast too, statistics are those of the parameters' type.
        values = input.to(self.weight.dtype)
        # Deviations from the common mean: E[x^2] - E[x]^2 would lose half of the digits.
        mean = all_reduce(values.mean((0, 2, 3))) / world
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / world
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None:
                momentum = self.momentum or 0.0
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def running_statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of this rank's buffers, on the CPU."""
    return {name: buffer.detach().cpu().clone() for name, buffer in network.named_buffers()}


def moving_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the floating buffers that are finite, of a network not yet trained.

    The others, masks of attention, never change, and a moving average of infinity is none.
    """
    floats = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    return {name: buffer for name, buffer in floats.items() if bool(buffer.isfinite().all())}


def averaged(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return statistics averaged over the ranks, on the CPU (integers: as they are here). Collective."""
    return mean_over_ranks({name: value.detach().cpu().clone() for name, value in own.items()})


def mean_over_ranks(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same on the device that all of them are on: no host waits for it. Collective.

    Integers, and all statistics of one process, are the tensors that were given.
    """
    floats = sorted(name for name, value in own.items() if value.is_floating_point())
    if not floats or dist.get_world_size() == 1:
        return own
    flat = torch.cat([own[name].detach().reshape(-1).double() for name in floats])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = zip(floats, flat.split([own[name].numel() for name in floats]), strict=True)
    return own | {name: part.to(own[name].dtype).reshape(own[name].shape) for name, part in parts}


def set_statistics(network: nn.Module, statistics: dict[str, torch.Tensor]) -> None:
    """Write buffers in place."""
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name in statistics:
                buffer.copy_(statistics[name])


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Put the buffers back afterwards: a forward pass in between leaves no trace."""
    kept = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


class StepStatistics:
    """The buffers of a network from step to step: what a step that is left out did to them is taken back.

    A forward pass has moved them before anybody knows that its loss, or its gradient, is not finite. One
    concatenation a step serves the check of this one, and is what the next one goes back to.

    Args:
        network: The network, with finite weights and statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        floats = list(moving_buffers(network).values())
        counts = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        self._kinds = [kind for kind in (floats, counts) if kind]
        # A number of the host would be copied to the device in every step, and waited for.
        self._finite = torch.ones((), dtype=torch.bool, device=next(network.parameters()).device)
        self.keep()

    def look(self) -> torch.Tensor:
        """Take note of the values of now; return whether they are finite, a bool scalar."""
        self._seen = [torch.cat([buffer.detach().reshape(-1) for buffer in kind]) for kind in self._kinds]
        return self._seen[0].isfinite().all() if self._seen else self._finite

    def accept(self) -> None:
        """Go back to what was last looked at, from now on."""
        self._kept = self._seen

    def keep(self) -> None:
        """Go back to the values of now, from now on."""
        self.look()
        self.accept()

    def accept_if(self, applied: torch.Tensor) -> None:
        """Accept what was last looked at, or take it back: by ``applied``, a bool scalar on the device."""
        pairs = zip(self._seen, self._kept, strict=True)
        self._kept = [torch.where(applied, seen, kept) for seen, kept in pairs]
        self.take_back()

    def take_back(self) -> None:
        """Put the buffers back to the values kept."""
        with torch.no_grad():
            for kind, flat in zip(self._kinds, self._kept, strict=True):
                parts = flat.split([buffer.numel() for buffer in kind])
                torch._foreach_copy_(kind, [part.view(b.shape) for b, part in zip(kind, parts, strict=True)])
