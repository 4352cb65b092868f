"""Steps on tensors that say they are on a GPU, and have no memory: what they would wait for, and mix up.

Every operation of a step but torch's own backward pass is asked for as on a GPU; a tensor on the wrong device
or of the wrong type is an error. Streams and events are stand-ins.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nml.recipe import Data, Engine, Loss, Model, Recipe
from pretrain.agreement import LAG, Agreement, Outcome
from pretrain.assembly import build_objective
from pretrain.engines import build_engine, ddp, native
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.presentations import Presentations
from tests.pretrain.small_engines import OPTIMIZERS, endless_trainer

GPU = torch.device("cuda", 0)
STEPS = 2
VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}


class Waits(TorchDispatchMode):
    """Counts what the host would wait for; a number that it reads of the device is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            self.found[name] += args[0].device.type == "cuda"
            return 1.0 if args[0].is_floating_point() else 1
        answer = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, answer)) if isinstance(leaf, torch.Tensor)]
        if name in ("_to_copy", "copy_") and len({tensor.device.type for tensor in tensors}) > 1:
            beside = kwargs.get("non_blocking") or True in args[2:]
            (self.beside if beside else self.found)[name] += 1
        return answer


@pytest.fixture
def gpu(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, ddp):
        monkeypatch.setattr(module, "device_of_rank", lambda: GPU)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    told = Outcome(1.0, False, False, False, 1.0, True, np.zeros((1, 3)))
    monkeypatch.setattr(Agreement, "read", lambda own, word: told)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("objective", "loss", "optimizer"),
    [
        ("classify", Loss(name="bce", mixup=0.2, cutmix=1.0), "lamb"),
        # A network without running statistics.
        ("classify", Loss(), "adamw"),
        ("clip", Loss(name="infonce"), "adamw"),
        ("mae", Loss(), "lamb"),
    ],
)
def test_a_step_on_a_gpu_waits_for_nothing(
    objective: str,
    loss: Loss,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> None:
    with_statistics = tiny_clip if objective == "clip" else tiny_resnet
    model = (
        with_statistics if loss.name != "cross-entropy" else {"name": "vit_tiny_patch16_224", "kwargs": VIT}
    )
    size = 8 if "vit" in model["name"] else 32
    recipe = Recipe(
        objective=objective,
        global_batch=4,
        ema=0.9,
        model=Model(**model),
        data=Data(size=size, test_size=size),
        loss=loss,
        optimizer=dataclasses.replace(OPTIMIZERS[optimizer], clip=1.0),
        engine=Engine(dtype="bf16"),
    )
    trained = build_objective(recipe, Setting(num_classes=0 if objective == "clip" else 4))
    network = trained.network()
    text = torch.ones(4, 12, dtype=torch.int64)
    images = torch.zeros(4, 3, size, size, dtype=torch.uint8)
    batch = Batch(images, text if objective == "clip" else torch.arange(4), torch.arange(4), torch.arange(4))

    def backward(loss: torch.Tensor) -> None:
        assert loss.device == GPU
        for weight in network.parameters():
            weight.grad = torch.empty_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        engine = build_engine("ddp", network, recipe, accumulation=1)
        trainer = endless_trainer(recipe, trained, engine, tmp_path, Presentations(4))
        for _ in range(LAG["cuda"]):
            trainer.train_step(trainer.upload(batch), 0.0)
        waits.found.clear()
        waits.beside.clear()
        for _ in range(STEPS):
            trainer.train_step(trainer.upload(batch), 0.0)
        assert not +waits.found
        # The batch, the words of the ranks and the answer.
        assert waits.beside["_to_copy"] >= 4 * STEPS
        assert waits.beside["copy_"] == STEPS
        assert float(torch.ones((), device=GPU)) == torch.ones(()).to(GPU).item()
        assert waits.found == {"_local_scalar_dense": 2, "_to_copy": 1}
    trainer.recorder.close()
    trainer._unheard.clear()
