"""Data parallelism with sharded weights, gradients and optimizer state: torch's FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.engines.fsdp_units import units
from pretrain.engines.native import NativeEngine, device_of_rank


class FsdpEngine(NativeEngine):
    """FSDP2 with fp32 parameters; lower precision is autocast's.

    A parameter policy of bf16 would cast the weights of batch normalisation but not its running
    statistics. Weights stay contiguous, as fully_shard demands; under ``channels_last`` only the
    images change their layout.
    """

    name: EngineName = "fsdp"

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        device = device_of_rank()
        network.to(device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for unit in units(network):
            fully_shard(unit, mesh=mesh)
        fully_shard(network, mesh=mesh)
        if recipe.engine.compile:
            # Its blocks share code and differ in shape: as one dynamic graph they do not compile, and all
            # batches of a run have one shape anyway.
            network.compile(dynamic=False)
        super().__init__(network, network, recipe, device)

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """See :class:`pretrain.engines.Engine`."""
        self.network.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def release(self) -> None:
        """See :class:`pretrain.engines.Engine`. The root waits for a backward pass to be sharded again."""
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
