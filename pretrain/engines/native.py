"""What ddp and fsdp share: torch's optimizers, autocast, and distributed checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from nml.errors import UserError
from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.agreement import LAG
from pretrain.engines import Tensors, Update, local
from pretrain.engines.activations import computing_again
from pretrain.engines.loss_scale import LossScale
from pretrain.engines.packed import packed, share, to_load, unpacked
from pretrain.engines.plan_reader import PlainPlanner, PlanReader, read_plan
from pretrain.optimizers import build_optimizer, recipe_groups

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
# Buffers are not part of what is loaded here.
_LOADED = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)


class NativeEngine:
    """An engine of torch's own parts. Subclasses say how gradients travel.

    Args:
        network: The network, moved to its device.
        wrapped: What is called in its place.
        recipe: The recipe.
    """

    name: EngineName

    def __init__(self, network: nn.Module, wrapped: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.network = network
        self.wrapped = wrapped
        self.device = device
        self._recipe = recipe
        self.lag = LAG[device.type]
        self.optimizer = build_optimizer(recipe, recipe_groups(network, recipe), on_device=self.lag > 0)
        self._scaler = LossScale(device.type, enabled=recipe.engine.dtype == "fp16")
        # Background saves must not mix with the collectives of the training.
        self._save_group: Any = dist.new_group(backend="gloo")

    def forward(self, *inputs: torch.Tensor | None) -> Any:
        """See :class:`pretrain.engines.Engine`."""
        with precision(self._recipe, self.device):
            return self.wrapped(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """See :class:`pretrain.engines.Engine`."""
        with computing_again(self.network, self._recipe):
            self._scaler.scale(loss).backward()

    def step(self, lr: float) -> Update:
        """See :class:`pretrain.engines.Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = 0.0
        if self._recipe.optimizer.clip:
            self._scaler.unscale_(self.optimizer)
            norm = self._clip(self._recipe.optimizer.clip)
        if self._scaler.is_enabled():
            update = self._scaler.taken(self.optimizer, norm)
        else:
            # Clipping by it would make every weight NaN.
            update = Update(norm, applied=math.isfinite(norm))
            if update.applied:
                self.optimizer.step()
        self.optimizer.zero_grad()
        return update

    def _clip(self, limit: float) -> float:
        return float(clipped(self.network, limit))

    def step_if(self, lr: float, trains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        limit = self._recipe.optimizer.clip
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
            # It has looked at the gradient: the norm is for clipping alone.
            norm = clipped(self.network, limit) if limit else torch.zeros((), device=self.device)
            norm, applied = self._scaler.to_be_taken(norm, trains)
        else:
            norm = clipped(self.network, limit)
            applied = trains & norm.isfinite()
        call_off(self.optimizer, applied)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, applied

    def discard(self) -> None:
        """See :class:`pretrain.engines.Engine`."""
        self.optimizer.zero_grad()

    def release(self) -> None:
        """See :class:`pretrain.engines.Engine`: whole weights stay as they are."""

    def moments(self) -> Iterable[torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        return tensors_of(self.optimizer)

    def clamp(self, name: str, low: float, high: float) -> None:
        """See :class:`pretrain.engines.Engine`."""
        local(self.network.get_parameter(name)).clamp_(low, high)

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        return kept_on_main(self.whole_weights())

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See :class:`pretrain.engines.Engine`."""
        return whole(self.network.named_parameters())

    def save(self, folder: Path, shared: Tensors, own: Tensors) -> Future[Any] | None:
        """See :class:`pretrain.engines.Engine`."""
        rank, world = dist.get_rank(), dist.get_world_size()
        state = self._state(shared, packed(rank, own))
        future = dcp.async_save(
            share(state, rank, world),
            storage_writer=dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True),
            process_group=self._save_group,
        )
        assert isinstance(future, Future)
        return future

    def load(self, folder: Path, shared: Tensors, own: Tensors, *, world_size: int) -> None:  # noqa: ARG002
        """See :class:`pretrain.engines.Engine`. Shards are cut anew for any world size."""
        # On every rank, and before they wait for each other: all end alike if it is none.
        plan = read_plan(folder)
        rank = dist.get_rank()
        state = self._state(shared, to_load(rank, own, plan))
        decays = _weight_decays(state)
        try:
            dcp.load(
                state,
                storage_reader=PlanReader(folder),
                planner=PlainPlanner(),
                process_group=self._save_group,
            )
        except CheckpointException as error:
            failures = [failure[0] for failure in error.failures.values()]
            for failure in failures:
                if isinstance(failure, UserError):
                    raise failure from error
            # What torch says of a tensor that is missing, or is another.
            if all(isinstance(failure, RuntimeError | ValueError | KeyError) for failure in failures):
                raise UserError(
                    f"{folder}: does not hold what this run would load: {failures[0]}",
                    mend="put another checkpoint back, or continue with the version that began the run",
                ) from error
            raise
        _check_weight_decays(folder, _weight_decays(state), decays)
        set_state_dict(
            self.network,
            self.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
            options=_LOADED,
        )
        if self._scaler.is_enabled():
            scale, tracker = state["scaler"].tolist()
            found = {"scale": scale, "_growth_tracker": int(tracker)}
            self._scaler.load_state_dict(self._scaler.state_dict() | found)
        own.update(unpacked(rank, own, state["own"]) if own else {})
        shared.update(state["shared"])

    def _state(self, shared: Tensors, own: Tensors) -> dict[str, Any]:
        fresh = not self.optimizer.state
        network, optimizer = get_state_dict(self.network, self.optimizer, options=_FLAT)
        if fresh:
            # torch has filled it by a step without gradients: has counted it, and taken decay for momentum.
            for tensor in self.moments():
                tensor.zero_()
            for group in self.optimizer.param_groups:
                if "step" in group:
                    group["step"] *= 0
            network, optimizer = get_state_dict(self.network, self.optimizer, options=_FLAT)
        parameters = {name for name, _ in self.network.named_parameters()}
        scaler = self._scaler.state_dict() or {"scale": 1.0, "_growth_tracker": 0}
        return {
            # Buffers differ by rank: they are among its own.
            "network": {name: value for name, value in network.items() if name in parameters},
            "optimizer": optimizer,
            "scaler": torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64),
            "shared": shared,
            "own": own,
        }


def clipped(network: nn.Module, limit: float) -> torch.Tensor:
    """Clip the gradient of a network where there is a limit above 0; return its norm before, a scalar."""
    weights = list(network.parameters())
    if limit:
        norm = nn.utils.clip_grad_norm_(weights, limit)
    else:
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def call_off(optimizer: Any, applied: torch.Tensor) -> torch.Tensor:
    """Let the next step of an optimizer come to nothing where it is not to be applied.

    Args:
        optimizer: The optimizer, built ``on_device``.
        applied: Whether to apply it, a bool scalar on the device; returned as it is.
    """
    optimizer.grad_scale, optimizer.found_inf = None, applied.logical_not().float()
    return applied


def tensors_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the tensors of an optimizer's state: this rank's part where they are sharded."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return [local(value) for value in values if isinstance(value, torch.Tensor)]


def _weight_decays(state: dict[str, Any]) -> dict[str, float]:
    names = [name for name in state["optimizer"] if name.endswith(".weight_decay")]
    return {name.removeprefix("param_groups."): state["optimizer"][name] for name in names}


def _check_weight_decays(folder: Path, before: dict[str, float], now: dict[str, float]) -> None:
    """Refuse a checkpoint that was trained with other parameters decaying.

    Raises:
        UserError: Naming the first of them.
    """
    for name in now:
        if before[name] != now[name]:
            raise UserError(
                f"{folder}: trained with {name} {before[name]}, and this version trains with {now[name]}",
                mend="continue with the version that began the run, or name another --run-dir",
            )


def whole(parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by name, whole on every rank, one at a time. Collective."""
    for name, parameter in parameters:
        tensor = parameter.detach()
        yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def kept_on_main(whole_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return whole tensors on the CPU of rank 0; nothing elsewhere. All ranks have to ask for each."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in whole_tensors:
        if dist.get_rank() == 0:
            kept[name] = tensor.to("cpu", copy=True).contiguous()
    return kept


def precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which a recipe's forward passes compute."""
    dtype = _DTYPES.get(recipe.engine.dtype)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def device_of_rank() -> torch.device:
    """Return this process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
