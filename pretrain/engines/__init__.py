"""How the processes of a run share its work, behind one small protocol.

ddp is the numerical reference; fsdp and deepspeed are held to its losses and weights by tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from nml.errors import UserError
from nml.recipe import Recipe
from nml.recipe_effects import default_of
from nml.run_options import EngineName
from pretrain.engines.activations import checkpoint_activations
from pretrain.engines.deepspeed_config import read_own

Tensors = dict[str, torch.Tensor]
# Graphs of one piece of code: ResNet-152 has 50 blocks of a class.
_GRAPHS = 256


class Update(NamedTuple):
    """What became of a step.

    Attributes:
        norm: Norm of the gradient before clipping, 0 where nothing asks for it; infinite or NaN where that is
            why the step was left out.
        applied: Whether the weights were updated. fp16 leaves steps out while it looks for its scale.
    """

    norm: float
    applied: bool


class Engine(Protocol):
    """A network, its optimizer, and what moves gradients and weights between ranks.

    Attributes:
        name: As ``--engine`` takes it.
        network: The network as it was built; its parameters may be shards.
        device: Where it runs.
        lag: Steps that the host may go on without knowing what became of one (:mod:`pretrain.agreement`); 0
            where each is decided on the host, by :meth:`step` or :meth:`discard`.
    """

    name: EngineName
    network: nn.Module
    device: torch.device
    lag: int

    def forward(self, *inputs: torch.Tensor | None) -> Any:
        """Return the network's output, under the recipe's autocast."""
        ...

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Surround a micro-batch's forward and backward pass; gradients travel in the last one."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's share of the rank's loss. Gradients average over ranks."""
        ...

    def step(self, lr: float) -> Update:
        """Clip, update the weights where the gradient is finite, clear the gradients. Collective."""
        ...

    def step_if(self, lr: float, trains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what :meth:`step` does where there is a ``lag``, and wait for nothing. Collective.

        Args:
            lr: Learning rate.
            trains: Whether to update the weights at all, a bool scalar on the device.

        Returns:
            Norm of the gradient before clipping, and whether the weights were updated, scalars on the device.
            Weights and the optimizer's state are as before where not.
        """
        ...

    def discard(self) -> None:
        """Clear the gradients of a whole step without an update. Collective."""
        ...

    def release(self) -> None:
        """Let go of what a forward pass without a backward pass has left gathered."""
        ...

    def moments(self) -> Iterable[torch.Tensor]:
        """Return this rank's part of the optimizer's state."""
        ...

    def clamp(self, name: str, low: float, high: float) -> None:
        """Keep a parameter within bounds, after a step."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Return whole parameters on the CPU of rank 0, nothing elsewhere. Collective."""
        ...

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each parameter by name, whole on every rank, until the next one. Collective."""
        ...

    def save(self, folder: Path, shared: Tensors, own: Tensors) -> Future[Any] | None:
        """Write the state to a folder; None means it is written, a future that it will be. Collective.

        Args:
            folder: Where to.
            shared: Further tensors that are equal on all ranks, or shards of one tensor.
            own: Tensors that are this rank's alone.
        """
        ...

    def load(self, folder: Path, shared: Tensors, own: Tensors, *, world_size: int) -> None:
        """Read what ``save`` wrote at ``world_size``, filling ``shared`` and ``own`` in place. Collective.

        ``own`` must be empty where the world size is another one now.
        """
        ...


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor, without its gradient."""
    detached = tensor.detach()
    part: torch.Tensor = detached.to_local() if hasattr(detached, "to_local") else detached
    return part


def check_engine(name: str, recipe: Recipe) -> None:
    """Refuse combinations that would train something else than the recipe says.

    Raises:
        UserError: With the reason.
    """
    config = recipe.engine
    if name == "deepspeed":
        if recipe.optimizer.name == "lamb" and config.zero_stage >= 1:
            raise UserError(
                f"--engine deepspeed with lamb at recipe.engine.zero_stage {config.zero_stage}: ZeRO fuses "
                "parameters into flat vectors, and lamb's trust ratio of each layer is lost",
                mend="--recipe.engine.zero_stage 0, or --engine ddp",
            )
        if config.dtype == "fp16":
            raise UserError(
                "--engine deepspeed with fp16: its fp16 mode casts batch normalisation too",
                mend="--recipe.engine.dtype bf16, or --engine ddp",
            )
        if recipe.ema and config.zero_stage == 3:
            raise UserError(
                "--engine deepspeed with ema at zero_stage 3: no rank holds whole weights to average",
                mend="--recipe.engine.zero_stage 2 or lower, or --recipe.ema 0",
            )
    if config.compress_gradients != "none" and name != "ddp":
        raise UserError(
            f"recipe.engine.compress_gradients with --engine {name}: only ddp compresses",
            mend="set it to none",
        )
    for field in ("shard_group", "gather_dtype"):
        value = getattr(config, field)
        if name != "fsdp" and value != default_of(recipe, f"engine.{field}"):
            raise UserError(
                f"recipe.engine.{field} {value} with --engine {name}: only fsdp shards by it",
                mend="leave it out, or --engine fsdp",
            )
    if config.gather_dtype == "bf16":
        _check_gathered_in_bf16(config.dtype)
    if config.deepspeed_config:
        if name != "deepspeed":
            raise UserError(f"recipe.engine.deepspeed_config with --engine {name}", mend="--engine deepspeed")
        read_own(Path(config.deepspeed_config))
    if recipe.model.batch_norm == "sync" and config.compile:
        raise UserError("recipe.model.batch_norm sync with compile", mend="turn one of them off")
    if config.checkpoint_activations:
        for value, name in (
            (recipe.model.batch_norm == "sync", "recipe.model.batch_norm sync"),
            (config.compile, "recipe.engine.compile"),
        ):
            if value:
                raise UserError(
                    f"{name} with recipe.engine.checkpoint_activations: not proven to take the same steps",
                    mend="turn one of them off",
                )


def _check_gathered_in_bf16(dtype: str) -> None:
    if dtype != "bf16":
        raise UserError(
            f"recipe.engine.gather_dtype bf16 with recipe.engine.dtype {dtype}: layers compute in bf16 then",
            mend="--recipe.engine.dtype bf16, or --recipe.engine.gather_dtype fp32",
        )
    # Batch normalisation could not keep its weights.
    if "param_dtype_override_fn" not in inspect.signature(MixedPrecisionPolicy).parameters:
        raise UserError(
            f"recipe.engine.gather_dtype bf16: not with torch {torch.__version__}",
            possible="torch 2.15 and later",
            mend="--recipe.engine.gather_dtype fp32",
        )


def _allow_a_graph_a_block() -> None:
    """Let all blocks of a network be compiled.

    The blocks of one class share their code, and each needs graphs of its own: for its shapes and its drop
    path, under fsdp, for training and for validation. Beyond torch's limit, 8, the rest would run uncompiled.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = max(
        _GRAPHS, torch._dynamo.config.accumulated_recompile_limit
    )


def build_engine(name: EngineName, network: nn.Module, recipe: Recipe, *, accumulation: int) -> Engine:
    """Return an engine around a network whose weights are equal on all ranks. Collective."""
    if recipe.engine.compile:
        _allow_a_graph_a_block()
    if recipe.engine.checkpoint_activations:
        checkpoint_activations(network)
    if name == "fsdp":
        from pretrain.engines.fsdp import FsdpEngine

        return FsdpEngine(network, recipe)
    if name == "deepspeed":
        from pretrain.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(network, recipe, accumulation=accumulation)
    from pretrain.engines.ddp import DdpEngine

    return DdpEngine(network, recipe)
