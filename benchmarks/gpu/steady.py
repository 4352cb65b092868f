"""What is measured first and once more at the end: whether the machine kept its pace."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.apart import Apart
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.turns import alone, objective_and_batches, seconds_of, take_turns, tell_rates
from benchmarks.train_loops import bare
from pretrain.engines.native import device_of_rank

_PRODUCTS = 10


def measure(sizes: Sizes, folder: Path, tell: Tell) -> None:  # noqa: ARG001 - as all parts
    """Tell the rate of products of bf16 matrices, and of the bare loop, which is not compiled."""
    device, apart = device_of_rank(), Apart()
    if device.type == "cuda":
        with apart("device"):
            properties = torch.cuda.get_device_properties(device)
            tell("device", {"name": properties.name, "memory_mb": properties.total_memory >> 20})
            nccl = ".".join(map(str, torch.cuda.nccl.version()))
            tell("cuda", {"built for": torch.version.cuda, "nccl": nccl})
    with apart("products"):
        tell("matmul_tflops", round(products(sizes.products, device) / 1e12, 3))
    recipe = sizes.recipe()
    with apart("loop"), alone():
        tell_rates(recipe, sizes.classes, tell)
        objective, batches = objective_and_batches(recipe, sizes, 2)
        take_turns({"bare": partial(bare, recipe, objective)}, batches, sizes, tell)
    apart.tell()


def products(side: int, device: torch.device) -> float:
    """Return FLOP/s of products of random bf16 matrices, [side, side] each."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            left @ right

    multiply()
    return 2 * side**3 * _PRODUCTS / seconds_of(multiply)
