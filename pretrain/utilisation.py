"""Model FLOPs utilisation: the operations that a step needs, over those that the device could have done.

Operations are those of the forward and the backward pass, teachers included; what is computed again to save
memory (``checkpoint_activations``) counts for nothing, and neither do the optimizer and the exchange between
ranks (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from nml.objectives import declared
from nml.recipe import Recipe
from pretrain.engines.native import device_of_rank, precision
from pretrain.objective import Setting

# Dense peaks in TFLOP/s by device name: fp16, bf16, TF32, and fp32 without tensor cores; None where there is
# none, or it is not told. They are those of NVIDIA's data sheet of each card; "with sparsity" halved.
_PEAKS: tuple[tuple[str, float | None, float | None, float | None, float | None], ...] = (
    (r"B200", 2250, 2250, 1125, None),
    (r"GH200.*", 989, 989, 494, 67),
    (r"H200 NVL", 835, 835, 417, 60),
    (r"H200", 989, 989, 494, 67),
    (r"H100 PCIe", 756, 756, 378, 51),
    (r"H100 NVL", 835, 835, 417, 60),
    (r"H100 (80GB HBM3|SXM.*)", 989, 989, 494, 67),
    (r"A100[- ].*", 312, 312, 156, 19.5),
    (r"A40", 149.7, 149.7, 74.8, 37.4),
    (r"A30", 165, 165, 82, 10.3),
    (r"A10", 125, 125, 62.5, 31.2),
    (r"L40S", 362, 362, 183, 91.6),
    (r"L40", 181, 181, 90.5, 90.5),
    (r"L4", 121, 121, 60, 30.3),
    (r"Tesla V100-SXM2.*", 125, None, None, 15.7),
    (r"Tesla T4", 65, None, None, 8.1),
)
# Samples that operations are counted of: two, since mixing pairs them.
_COUNTED = 2


class Work(NamedTuple):
    """What a sample is to a run.

    Attributes:
        devices: GPUs, or processes where there are none.
        images: Of a sample: its views.
        flops: Floating point operations of a sample, all its views together; None where no peak is known.
        peak: FLOP/s that a device could do; None where it is not known.
    """

    devices: int = 1
    images: int = 1
    flops: float | None = None
    peak: float | None = None

    def rates(self, samples_per_s: float) -> dict[str, float]:
        """Return what a line of metrics.jsonl says of a throughput over all devices; MFU is 0 to 1."""
        found = {"images_per_s_device": round(samples_per_s * self.images / self.devices, 2)}
        if self.flops and self.peak:
            found["mfu"] = round(samples_per_s * self.flops / self.devices / self.peak, 4)
        return found


ALONE = Work()


def work_of(recipe: Recipe, num_classes: int, *, devices: int, device: torch.device) -> Work:
    """Return what a sample of a recipe is to a run; operations are counted where that is of use.

    Args:
        recipe: The recipe.
        num_classes: K of the set; 0 for captions.
        devices: Processes of the run.
        device: That of this one.
    """
    peak, views = peak_of(device, recipe.engine.dtype), int(declared(recipe.objective).views)
    return Work(devices, views, flops_of_sample(recipe, num_classes) if peak else None, peak)


def peak_flops(name: str, dtype: str, *, tf32: bool) -> float | None:
    """Return the dense peak of a device in FLOP/s; None where it is not known, of a part of one too (MIG).

    Args:
        name: As ``torch.cuda.get_device_name`` tells it.
        dtype: As ``recipe.engine.dtype``.
        tf32: Whether products of fp32 may be rounded to TF32.
    """
    for pattern, fp16, bf16, rounded, full in _PEAKS:
        if re.fullmatch(f"(NVIDIA )?{pattern}", name) and "MIG" not in name:
            found = {"fp16": fp16, "bf16": bf16}.get(dtype, rounded if tf32 else full)
            return found and found * 1e12
    return None


def peak_of(device: torch.device, dtype: str) -> float | None:
    """Return the dense peak of a device of this process in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    # Convolutions may by default, products of matrices not: where there are many, MFU is too low.
    tf32 = torch.backends.cudnn.allow_tf32
    return peak_flops(torch.cuda.get_device_name(device), dtype, tf32=tf32)


def flops_of_sample(recipe: Recipe, num_classes: int) -> float:
    """Return the floating point operations that a sample costs in a training step, all its views together.

    They are counted of tensors without memory, on a network and an objective of their own; nothing of a run
    changes, its global generators included. Takes a second.

    Args:
        recipe: The recipe.
        num_classes: K of the set; 0 for captions.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    plain = dataclasses.replace(
        recipe,
        global_batch=_COUNTED,
        engine=dataclasses.replace(
            recipe.engine, dtype="fp32", compile=False, checkpoint_activations=False, micro_batch=0
        ),
    )
    kind: Any = declared(recipe.objective)
    device = device_of_rank()
    with generators_kept():
        objective = kind(plain, Setting(num_classes=num_classes))
        network = objective.network().to(device).train()
        objective.begin(network)
        batch = objective.empty_batch(_COUNTED)
        # Numbers of samples are read where the batch comes from.
        batch = batch._replace(images=batch.images.to(device), targets=batch.targets.to(device))
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            objective.backward(_Counted(network, plain, device), batch, 0)
    return float(counter.get_total_flops()) / _COUNTED


class _Counted:
    """What an objective's backward pass asks of an engine, around a network without memory."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.network, self._recipe, self.device = network, recipe, device

    def forward(self, *inputs: torch.Tensor | None) -> Any:
        with precision(self._recipe, self.device):
            return self.network(*inputs)

    @contextlib.contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:  # noqa: ARG002 - as of an engine
        yield

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators of the CPU back to where they were."""
    kept, own = np.random.get_state(), copy.deepcopy(random.getstate())
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(kept)
    random.setstate(own)
