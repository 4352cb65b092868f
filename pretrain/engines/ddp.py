"""Data parallelism with whole weights on every rank: the numerical reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.engines.native import NativeEngine, device_of_rank

# torch renamed the argument in 2.15 and warns of the old name.
_BUFFERS_STAY_LOCAL: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class DdpEngine(NativeEngine):
    """torch's DistributedDataParallel, or the bare network where there is one process.

    Buffers stay each rank's own; see :mod:`pretrain.batchnorm`.
    """

    name: EngineName = "ddp"

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        device = device_of_rank()
        network.to(device)
        if recipe.engine.channels_last:
            network.to(memory_format=torch.channels_last)
        called: Any = compiled(network, recipe) if recipe.engine.compile else network
        self._ddp = _distributed(called, recipe, device) if _has_to_average(recipe) else None
        super().__init__(network, self._ddp or called, recipe, device)

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """See :class:`pretrain.engines.Engine`."""
        if last or self._ddp is None:
            yield
        else:
            with self._ddp.no_sync():
                yield


def compiled(network: nn.Module, recipe: Recipe) -> Any:
    """Return a network that is compiled as it is called."""
    return torch.compile(network, dynamic=False, mode=recipe.engine.compile_mode)


def _has_to_average(recipe: Recipe) -> bool:
    """Return whether gradients change on their way to the optimizer.

    With one process they do not, and DistributedDataParallel would only copy each of them into its
    buckets: 2 % of a step of a small CLIP, and as much memory as the weights.
    """
    return dist.get_world_size() > 1 or recipe.engine.compress_gradients != "none"


def _distributed(called: nn.Module, recipe: Recipe, device: torch.device) -> DistributedDataParallel:
    wrapped = DistributedDataParallel(
        called,
        device_ids=[device.index] if device.type == "cuda" else None,
        **_BUFFERS_STAY_LOCAL,
        gradient_as_bucket_view=True,
    )
    if recipe.engine.compress_gradients != "none":
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(
            None, getattr(default_hooks, recipe.engine.compress_gradients + "_compress_hook")
        )
    return wrapped
