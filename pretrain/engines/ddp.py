"""Data parallelism with whole weights on every rank: the numerical reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.engine_names import EngineName
from pretrain.engines.native import NativeEngine, device_of_rank
from pretrain.recipe import Recipe

# torch renamed the argument in 2.15 and warns of the old name.
_BUFFERS_STAY_LOCAL: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class DdpEngine(NativeEngine):
    """torch's DistributedDataParallel. Buffers stay each rank's own; see :mod:`pretrain.batchnorm`."""

    name: EngineName = "ddp"

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        device = device_of_rank()
        network.to(device)
        if recipe.engine.channels_last:
            network.to(memory_format=torch.channels_last)
        called = torch.compile(network, dynamic=False) if recipe.engine.compile else network
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
        self._ddp = wrapped
        super().__init__(network, wrapped, recipe, device)

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """See :class:`pretrain.engines.Engine`."""
        if last:
            yield
        else:
            with self._ddp.no_sync():
                yield
