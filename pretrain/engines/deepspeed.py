"""DeepSpeed, ZeRO stages 0 to 3, with torch's own optimizers and fp32 weights."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from nml.errors import UserError
from nml.files import fsync_file
from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.agreement import LAG
from pretrain.engines import Tensors, Update
from pretrain.engines.activations import computing_again
from pretrain.engines.deepspeed_config import deepspeed_config
from pretrain.engines.native import call_off, clipped, device_of_rank, kept_on_main, tensors_of
from pretrain.optimizers import build_optimizer, recipe_groups
from pretrain.world import from_main

_TAG = "state"
_UNIVERSAL = "universal"
_SHARED = "shared.safetensors"


class DeepSpeedEngine:
    """A DeepSpeed engine behind the protocol of :mod:`pretrain.engines`.

    DeepSpeed never synchronises buffers; :mod:`pretrain.batchnorm` averages them where they count.
    """

    name: EngineName = "deepspeed"

    def __init__(self, network: nn.Module, recipe: Recipe, *, accumulation: int) -> None:
        deepspeed = import_deepspeed()
        self.device = device_of_rank()
        network.to(self.device)
        self.network = network
        self._recipe = recipe
        self._accumulation = accumulation
        # ZeRO asks the device itself, in each step, whether the gradient is finite.
        self.lag = 0 if recipe.engine.zero_stage else LAG[self.device.type]
        optimizer = build_optimizer(recipe, recipe_groups(network, recipe), on_device=self.lag > 0)
        self._deepspeed = deepspeed
        config = deepspeed_config(recipe, accumulation=accumulation, world_size=dist.get_world_size())
        if recipe.engine.zero_stage == 0:
            # Without ZeRO it would clip by a norm that is NaN, and not tell the norm: see step().
            config["gradient_clipping"] = 0.0
        if recipe.engine.zero_stage == 3:
            _keep_attention_whole(network)
        try:
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=network, optimizer=optimizer, config=config, dist_init_required=False
            )
        except Exception as error:
            if recipe.engine.deepspeed_config is None:
                raise
            # Pydantic's and DeepSpeed's own errors and assertions: the generated part is known to be good.
            raise UserError(
                f"recipe.engine.deepspeed_config {recipe.engine.deepspeed_config}: deepspeed refuses it: "
                f"{_first_lines(error)}"
            ) from error
        if recipe.engine.channels_last and recipe.engine.zero_stage == 0:
            # Only now: it broadcasts weights as bytes, which other layouts cannot be viewed as.
            network.to(memory_format=torch.channels_last)
        self._failed_writes: list[Exception] = []
        self._engine.checkpoint_engine.save = self._write
        # Exports hold whole weights already; its script would be one more file to fail on.
        self._engine._copy_recovery_script = lambda _: None
        if recipe.engine.compile:
            self._engine.compile(compile_kwargs={"dynamic": False, "mode": recipe.engine.compile_mode})

    def forward(self, *inputs: torch.Tensor | None) -> Any:
        """See :class:`pretrain.engines.Engine`."""
        return self._engine(*inputs)

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """See :class:`pretrain.engines.Engine`."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """See :class:`pretrain.engines.Engine`."""
        # DeepSpeed divides by the number of micro-batches; the objective has done so already.
        with computing_again(self.network, self._recipe):
            self._engine.backward(loss * self._accumulation)

    def step(self, lr: float) -> Update:
        """See :class:`pretrain.engines.Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        limit = self._recipe.optimizer.clip
        if self._recipe.engine.zero_stage > 0:
            self._engine.step()
            # ZeRO leaves a step out by itself where the norm is not finite, and says so by inf.
            applied = bool(self._engine.was_step_applied())
            told = self._engine.get_global_grad_norm() if limit or not applied else None
            # Whether it is 0 would be one more question to the device.
            return Update(0.0 if told is None else float(told), applied)
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), limit)) if limit else 0.0
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return Update(norm, applied=False)
        self._engine.step()
        return Update(norm, applied=True)

    def step_if(self, lr: float, trains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = clipped(self.network, self._recipe.optimizer.clip)
        applied = call_off(self._optimizer, trains & norm.isfinite())
        self._engine.step()
        return norm, applied

    def discard(self) -> None:
        """See :class:`pretrain.engines.Engine`. ZeRO lets go of gradients in a step of its own alone."""
        if self._recipe.engine.zero_stage == 0:
            self._engine.zero_grad()
            return
        from deepspeed.utils import safe_set_full_grad

        for parameter in self.network.parameters():
            whole = getattr(parameter, "ds_numel", parameter.numel())
            # The last rank's part may end beyond the parameter.
            safe_set_full_grad(parameter, torch.full((whole + dist.get_world_size(),), math.nan))
        self._engine.step()
        if self._engine.was_step_applied():
            raise RuntimeError("deepspeed has updated weights in a step that it was to leave out")

    def release(self) -> None:
        """See :class:`pretrain.engines.Engine`: ZeRO frees them as a forward pass without gradients ends."""

    def moments(self) -> Iterable[torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        return tensors_of(getattr(self._optimizer, "optimizer", self._optimizer))

    def clamp(self, name: str, low: float, high: float) -> None:
        """See :class:`pretrain.engines.Engine`. ZeRO updates copies of the parameters: those count."""
        parameter = self.network.get_parameter(name)
        if self._recipe.engine.zero_stage == 0:
            parameter.data.clamp_(low, high)
            return
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        value = safe_get_full_fp32_param(parameter)
        bounded = value.clamp(low, high)
        if not torch.equal(value, bounded):
            safe_set_full_fp32_param(parameter, bounded)
            # What the network computes with follows only at the next step.
            with self._deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=self._recipe.engine.zero_stage == 3
            ):
                parameter.data.copy_(bounded)

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`pretrain.engines.Engine`."""
        return kept_on_main(self.whole_weights())

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See :class:`pretrain.engines.Engine`."""
        for name, parameter in self.network.named_parameters():
            with self._deepspeed.zero.GatheredParameters(
                [parameter], enabled=self._recipe.engine.zero_stage == 3
            ):
                yield name, parameter.detach()

    def save(self, folder: Path, shared: Tensors, own: Tensors) -> Future[Any] | None:
        """See :class:`pretrain.engines.Engine`."""
        self._failed_writes.clear()
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        _write_tensors(_own_file(folder), own)
        if dist.get_rank() == 0:
            _write_tensors(folder / _SHARED, shared)
        if self._failed_writes:
            raise self._failed_writes[0]
        return None

    def _write(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one of DeepSpeed's files, fsynced. Errors wait: the other ranks are in its barriers."""
        try:
            with Path(path).open("wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            self._failed_writes.append(error)

    def load(self, folder: Path, shared: Tensors, own: Tensors, *, world_size: int) -> None:
        """See :class:`pretrain.engines.Engine`. Another world size goes through a universal checkpoint."""
        if world_size == dist.get_world_size() or self._recipe.engine.zero_stage == 0:
            self._engine.load_checkpoint(str(folder), tag=_TAG, load_lr_scheduler_states=False)
        else:
            self._load_universal(folder)
        shared.update(load_file(folder / _SHARED))
        if own:
            own.update(load_file(_own_file(folder)))

    def _load_universal(self, folder: Path) -> None:
        if self._recipe.optimizer.name == "sgd":
            raise UserError(
                "deepspeed: a checkpoint of sgd cannot change its world size, since universal checkpoints "
                "hold Adam's state alone",
                mend="continue with as many processes as before, or train with --engine ddp",
            )
        mistake = from_main(_convert(folder) if dist.get_rank() == 0 else "")
        if mistake:
            raise UserError(f"{folder}: deepspeed could not convert it to a universal checkpoint: {mistake}")
        optimizer = self._optimizer.optimizer
        settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self._engine._config.load_universal_checkpoint = True
        self._engine.load_checkpoint(str(folder), tag=_UNIVERSAL, load_lr_scheduler_states=False)
        self._engine._config.load_universal_checkpoint = False
        # ZeRO 3 gives every group the settings of the first, so that biases and norms would decay, and
        # every group's state one and the same count of steps, which each group's step would then raise.
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
        for state in optimizer.state.values():
            state["step"] = state["step"].clone()
        dist.barrier()
        if dist.get_rank() == 0:
            _remove_universal(folder)


def _keep_attention_whole(network: nn.Module) -> None:
    """Let ZeRO 3 gather and watch what holds an attention as one module.

    Around every module that it watches, it puts another tensor in the place of each argument. Attention then
    no longer sees that its query, key and value are one, and rounds their gradients one by one. (Of what is
    watched as one, the input must have a gradient: here it has come through an embedding.)
    """
    from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

    for module in network.modules():
        if any(isinstance(child, nn.MultiheadAttention) for child in module.children()):
            set_z3_leaf_module(module, True)


def _convert(folder: Path) -> str:
    """Write the universal form of a checkpoint beside it; return what went wrong, or nothing."""
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main as to_universal

    _remove_universal(folder)
    arguments = Namespace(
        input_folder=str(folder / _TAG),
        output_folder=str(folder / _UNIVERSAL),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            to_universal(arguments)
    # The other ranks wait for an answer, whatever it is.
    except Exception as error:
        _remove_universal(folder)
        return f"{type(error).__name__}: {error}"
    return ""


def _remove_universal(folder: Path) -> None:
    # It takes as much room as the checkpoint, and is needed while it is read only.
    shutil.rmtree(folder / _UNIVERSAL, ignore_errors=True)
    (folder / "latest_universal").unlink(missing_ok=True)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])


def _own_file(folder: Path) -> Path:
    return folder / f"own-{dist.get_rank():05d}.safetensors"


def _write_tensors(file: Path, tensors: Tensors) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    # Rank 0, which completes the checkpoint, cannot make durable what another machine wrote.
    fsync_file(file)


def import_deepspeed() -> Any:
    """Import DeepSpeed quietly, and without the compiler it would otherwise start on a CPU.

    Raises:
        UserError: If it is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore", module="deepspeed")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            "--engine deepspeed: not installed", mend="pip install 'noisy-model-learning[deepspeed]'"
        ) from error
    # An engine would import it as it starts, for a second: a process that stands by has it already.
    from torch._inductor import compile_fx  # noqa: F401

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its shared-memory all-reduce for CPU ranks of one machine is compiled at first use, by every
    # rank at once, for 40 s, and leaves a stale lock when killed. Gloo does the same work.
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if compatible is not None:
        compatible["deepspeed_shm_comm"] = False
    return deepspeed
