"""Data parallelism with sharded weights, gradients and optimizer state: torch's FSDP2.

What FSDP gathers, uses and frees together is a unit, found by structure, for any network: a part that the
network calls, which is an element of a ``Sequential`` or a list, or an attribute of a part that was itself
too large for one unit. Walking down from the root, a part is a unit once it has at most an eighth of the
parameters, or no blocks to be cut into: below blocks lie layers, whose weights a forward pass may use
without calling them. What is in none of the units of a part that was cut makes one more unit of that part;
the rest is the root's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from nml.errors import UserError
from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.engines.native import NativeEngine, device_of_rank

# Shares of the parameters: a larger part is cut where it has blocks, a smaller one left to what is around it.
LARGEST, SMALLEST = 1 / 8, 1 / 250


class FsdpEngine(NativeEngine):
    """FSDP2 with fp32 parameters; lower precision is autocast's, and that of what travels where asked for.

    Weights stay contiguous, as fully_shard demands; under ``channels_last`` only the images change their
    layout.

    Raises:
        UserError: If the processes cannot be divided into groups.
    """

    name: EngineName = "fsdp"

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        device = device_of_rank()
        network.to(device)
        mesh, policy = _mesh(device, recipe.engine.shard_group), _policy(network, recipe)
        for unit in units(network):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
        if recipe.engine.compile:
            # Its blocks share code and differ in shape: as one dynamic graph they do not compile, and all
            # batches of a run have one shape anyway.
            network.compile(dynamic=False, mode=recipe.engine.compile_mode)
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


def _mesh(device: torch.device, group: int) -> DeviceMesh:
    """Return all ranks in a row, or in rows of ``group`` that each share one copy of the weights.

    A run goes on where there are fewer processes than a group had.
    """
    size = dist.get_world_size()
    if not 0 < group < size:
        return init_device_mesh(device.type, (size,))
    if size % group:
        raise UserError(
            f"recipe.engine.shard_group {group}: {size} processes cannot be divided into groups of it",
            possible="a divisor of the number of processes",
            mend="--recipe.engine.shard_group 0, one group of all, which a run that has begun takes too",
        )
    return init_device_mesh(device.type, (size // group, group), mesh_dim_names=("copies", "shards"))


def _policy(network: nn.Module, recipe: Recipe) -> MixedPrecisionPolicy:
    if recipe.engine.gather_dtype == "fp32":
        return MixedPrecisionPolicy()
    # Running statistics of batch normalisation are fp32, and a temperature has few digits to lose.
    kept = {
        id(parameter)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
        if isinstance(module, _BatchNorm) or parameter.numel() == 1
    }

    def dtype_of(parameter: nn.Parameter) -> torch.dtype | None:
        return torch.float32 if id(parameter) in kept else None

    more: dict[str, Any] = {"param_dtype_override_fn": dtype_of}
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False, **more
    )


def units(network: nn.Module) -> list[nn.Module]:
    """Return the parts to shard one by one, inner before outer, without the network itself."""
    found: list[nn.Module] = []
    _cut(network, _size(network), _uses(network), found)
    return found


def _cut(part: nn.Module, total: int, uses: Counter[int], found: list[nn.Module]) -> int:
    """Collect the units inside a part; return how many parameters they have."""
    covered = 0
    for child in part.children():
        size = _size(child)
        if _only_holds(child):
            covered += _cut(child, total, uses, found)
        elif size < SMALLEST * total or _shares(child, uses):
            continue
        elif size > LARGEST * total and _has_blocks(child):
            inside = _cut(child, total, uses, found)
            if size - inside >= SMALLEST * total:
                found.append(child)
                inside = size
            covered += inside
        else:
            found.append(child)
            covered += size
    return covered


def _only_holds(part: nn.Module) -> bool:
    """Return whether a part is a container: networks often loop over its elements and never call it."""
    forward = type(part).forward
    return type(part) is nn.Sequential or forward is nn.Module.forward


def _has_blocks(part: nn.Module) -> bool:
    """Return whether somewhere inside lie several modules of one class that are more than a layer."""
    for module in part.modules():
        kinds = Counter(type(child) for child in module.children() if _is_more_than_a_layer(child))
        if any(count > 1 for count in kinds.values()):
            return True
    return False


def _is_more_than_a_layer(module: nn.Module) -> bool:
    return any(_size(child) for child in module.children())


def _shares(part: nn.Module, uses: Counter[int]) -> bool:
    """Return whether a parameter inside is used outside too, where it would still be a shard."""
    return any(count < uses[parameter] for parameter, count in _uses(part).items())


def _uses(part: nn.Module) -> Counter[int]:
    """Count the places at which each parameter is registered: more than one for what modules share."""
    return Counter(id(parameter) for _, parameter in part.named_parameters(remove_duplicate=False))


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
