"""What a rank puts into a checkpoint of all ranks, so that its plan stays small.

The plan has an entry a tensor, and rank 0 makes it of what all ranks send. Of 1,024 ranks that each tell of
all that they have alike, and of each buffer of fifty layers of batch normalisation, that would be a million.
So each rank saves a share of what all have, and its own tensors as one.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load, save
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from nml.errors import UserError
from pretrain.engines import Tensors


def share(state: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Return what a rank saves of a state: its part of each sharded tensor, and its share of the rest.

    Args:
        state: Values by name in sections, of the same names and shapes on all ranks, but for ``own``; or a
            value in place of a section.
        rank: The rank.
        world: Number of ranks.
    """
    alike = [
        (-value.nbytes if isinstance(value, torch.Tensor) else 0, section, name)
        for section, values in state.items()
        if section != "own" and isinstance(values, dict)
        for name, value in values.items()
        if not isinstance(value, DTensor)
    ]
    # The largest ones to one rank each, so that all write about as much.
    others = {place[1:] for number, place in enumerate(sorted(alike)) if number % world != rank}
    kept = {
        section: {name: value for name, value in values.items() if (section, name) not in others}
        for section, values in state.items()
        if isinstance(values, dict)
    }
    single = {section: value for section, value in state.items() if not isinstance(value, dict) and rank == 0}
    return {section: values for section, values in kept.items() if values} | single


def packed(rank: int, own: Tensors) -> Tensors:
    """Return what a checkpoint holds of a rank's own tensors: one of bytes, by its number."""
    if not own:
        return {}
    whole = save({name: tensor.contiguous() for name, tensor in own.items()})
    return {str(rank): torch.frombuffer(bytearray(whole), dtype=torch.uint8)}


def to_load(rank: int, own: Tensors, plan: Metadata) -> Tensors:
    """Return tensors to load what a checkpoint holds of a rank into.

    Args:
        rank: The rank.
        own: Its tensors by name.
        plan: The checkpoint's. Earlier versions kept each tensor by itself.

    Raises:
        UserError: If the plan has more of it than those tensors could be.
    """
    if not own:
        return {}
    whole: Any = plan.state_dict_metadata.get(f"own.{rank}")
    if isinstance(whole, TensorStorageMetadata):
        # Before memory is taken for it. Other versions of safetensors may write other headers.
        found, most = whole.size.numel(), 2 * packed(rank, own)[str(rank)].nbytes
        if found > most:
            raise UserError(
                f"checkpoint: the buffers of rank {rank} take {found:,} bytes, "
                f"those of this network up to {most:,}",
                mend="put another one back, or name another --run-dir",
            )
        return {str(rank): torch.empty(whole.size, dtype=torch.uint8)}
    return {f"{rank}/{name}": tensor for name, tensor in own.items()}


def unpacked(rank: int, own: Tensors, found: Tensors) -> Tensors:
    """Return a rank's tensors from what :func:`to_load` was filled with.

    Raises:
        UserError: If they are of another network, or do not read.
    """
    if str(rank) in found:
        try:
            loaded = load(found[str(rank)].numpy().tobytes())
        # safetensors raises its own type, which derives from Exception alone.
        except Exception as error:
            raise UserError(
                f"checkpoint: the buffers of rank {rank} do not read: {error}", mend="put another one back"
            ) from error
    else:
        loaded = {name.partition("/")[2]: tensor for name, tensor in found.items()}
    shapes = ({name: (one.dtype, one.shape) for name, one in kind.items()} for kind in (loaded, own))
    if next(shapes) != next(shapes):
        raise UserError(
            "checkpoint: the buffers that it has of each rank are of another network",
            mend="continue with the version that began the run, or name another --run-dir",
        )
    return loaded
