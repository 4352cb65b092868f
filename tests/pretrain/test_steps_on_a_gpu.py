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

from nml.objectives import declared
from nml.recipe import Data, Engine, Loss, Model, Recipe
from pretrain.agreement import LAG, Agreement, Outcome
from pretrain.assembly import build_objective
from pretrain.engines import build_engine, ddp
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.objectives.teacher import Teacher
from pretrain.presentations import Presentations
from tests.pretrain.small_engines import OPTIMIZERS, trainer_without_data

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
    monkeypatch.setattr(ddp, "device_of_rank", lambda: GPU)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda tensors, tensor: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    told = Outcome(1.0, False, False, False, 1.0, True, np.zeros((1, 3)))
    monkeypatch.setattr(Agreement, "read", lambda own, word: told)


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe, as far as what a step waits for could depend on it."""

    objective: str
    optimizer: str
    loss: Loss = dataclasses.field(default_factory=Loss)
    vit: bool = False
    dtype: str = "bf16"
    clip: float = 1.0
    ema: float = 0.9
    parts: int = 1

    def recipe(self, tiny_resnet: dict[str, Any], tiny_clip: dict[str, Any]) -> Recipe:
        small = declared(self.objective).small
        resnet = tiny_clip if self.objective == "clip" else tiny_resnet
        model = {"name": "vit_tiny_patch16_224", "kwargs": VIT} if self.vit else resnet
        size = 8 if self.vit else 32
        return Recipe(
            objective=self.objective,
            global_batch=4,
            ema=self.ema,
            model=Model(**model),
            data=Data(size=size, test_size=size),
            loss=self.loss,
            options=small.get("options", {}),
            optimizer=dataclasses.replace(OPTIMIZERS[self.optimizer], clip=self.clip),
            engine=Engine(dtype=self.dtype),  # type: ignore[arg-type]
        )


CASES = [
    Case("classify", "lamb", Loss(name="bce", mixup=0.2, cutmix=1.0)),
    # A network without running statistics.
    Case("classify", "adamw", vit=True, dtype="fp32", ema=0.0),
    Case("classify", "adamw", Loss(name="sce"), clip=0.0, parts=2),
    Case("clip", "adamw", Loss(name="infonce"), dtype="fp16", clip=0.0),
    Case("clip", "lamb", Loss(name="siglip"), dtype="fp32", clip=0.0, ema=0.0, parts=2),
    Case("mae", "lamb", vit=True),
    Case("simclr", "adamw", dtype="fp16", parts=2),
    Case("supcon", "lamb", dtype="fp32", ema=0.0),
    Case("moco", "lamb", dtype="fp16"),
    Case("dino", "lamb", parts=2),
]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.objective}-{case.dtype}-{case.optimizer}")
def test_a_step_on_a_gpu_waits_for_nothing(
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> None:
    recipe = case.recipe(tiny_resnet, tiny_clip)
    of_pairs = case.objective == "clip"
    setting = Setting(num_classes=0 if of_pairs else 4, micro_batches=case.parts)
    trained = build_objective(recipe, setting)
    network = trained.network()
    trained.begin(network)
    text = torch.ones(4, 12, dtype=torch.int64)
    images = torch.zeros(4 * trained.views, 3, recipe.data.size, recipe.data.size, dtype=torch.uint8)
    batch = Batch(images, text if of_pairs else torch.arange(4), torch.arange(4), torch.arange(4))

    def backward(loss: torch.Tensor) -> None:
        assert loss.device == GPU
        for weight in network.parameters():
            weight.grad = torch.empty_like(weight)

    def grad(loss: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        assert loss.device == GPU
        return [torch.empty_like(tensor) for tensor in inputs]

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        keep_on_gpu(trained)
        engine = build_engine("ddp", network, recipe, accumulation=case.parts)
        trainer = trainer_without_data(recipe, trained, engine, tmp_path, presentations=Presentations(4))
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


def keep_on_gpu(trained: Any) -> None:
    """Move what an objective keeps beside the network."""
    for name, value in vars(trained).items():
        if isinstance(value, torch.Tensor):
            setattr(trained, name, value.to(GPU))
        elif isinstance(value, Teacher):
            value.network.to(GPU)
