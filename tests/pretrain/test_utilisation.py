"""What metrics.jsonl says of the device: images a second, and the share of its peak that is used."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from nml.curves import metrics_lines
from nml.recipe import Data, Loss, Model, Recipe
from pretrain import utilisation
from pretrain.recording import Recorder, StepReport
from pretrain.utilisation import Work, flops_of_sample, peak_flops, peak_of, work_of
from tests.pretrain.conftest import RESNET, TINY_CLIP, TINY_RESNET

SMALL = Data(size=32, test_size=32)


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "tflops"),
    [
        ("NVIDIA H200", "bf16", True, 989),
        ("NVIDIA H200", "fp32", True, 494),
        ("NVIDIA H200", "fp32", False, 67),
        ("NVIDIA H100 80GB HBM3", "fp16", True, 989),
        # Slower cards of the same name are not taken for the fastest one.
        ("NVIDIA H100 PCIe", "bf16", True, 756),
        ("NVIDIA H200 NVL", "bf16", True, 835),
        ("NVIDIA A100-SXM4-40GB", "bf16", True, 312),
        ("NVIDIA A10", "bf16", True, 125),
        ("NVIDIA L4", "bf16", True, 121),
        ("Tesla T4", "fp16", True, 65),
        # It has no bf16 but in software.
        ("Tesla V100-SXM2-16GB", "bf16", True, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", True, None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", True, None),
        ("NVIDIA A10G", "bf16", True, None),
        ("NVIDIA Z9000", "bf16", True, None),
    ],
)
def test_peaks_are_those_of_the_card_and_the_type_or_unknown(
    name: str, dtype: str, tf32: bool, tflops: float | None
) -> None:
    assert peak_flops(name, dtype, tf32=tf32) == (tflops and tflops * 1e12)


def by_definition(model: Model, classes: int, size: int) -> tuple[float, float]:
    """Return operations of a forward pass, two a product, and of the first layer alone."""
    counted: list[int] = []

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        counted.append(2 * output.numel() * module.weight[0].numel())

    network = timm.create_model(model.name, num_classes=classes, **model.kwargs).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, size, size))
    return sum(counted), counted[0]


def test_operations_are_those_of_the_layers_forward_and_backward() -> None:
    recipe = Recipe(model=Model(**RESNET), data=SMALL)
    forward, first = by_definition(recipe.model, 10, 32)
    # As many for the gradient of the weights, and of the inputs, but nobody asks for that of the images.
    assert flops_of_sample(recipe, 10) == 3 * forward - first


def test_views_and_teachers_count() -> None:
    options = {"hidden": 8, "dim": 4}
    of = {
        name: flops_of_sample(
            Recipe(objective=name, options=chosen, model=Model(**TINY_RESNET), data=SMALL), 0
        )
        for name, chosen in {
            "simclr": options,
            "moco": {**options, "queue": 32},
            "dino": {"hidden": 8, "bottleneck": 4, "prototypes": 8},
        }.items()
    }
    forward, first = by_definition(Model(**TINY_RESNET), 0, 32)
    trained = 3 * forward - first
    assert of["simclr"] == pytest.approx(2 * trained, rel=0.01)
    # The teacher answers to one view, or to both.
    assert of["moco"] == pytest.approx(trained + forward, rel=0.01)
    assert of["dino"] == pytest.approx(2 * trained + 2 * forward, rel=0.01)


@pytest.mark.parametrize(
    "values",
    [
        {"model": Model(**TINY_RESNET), "data": SMALL, "loss": Loss(name="bce", mixup=0.1, cutmix=1.0)},
        {"objective": "clip", "model": Model(**TINY_CLIP), "data": SMALL, "loss": Loss(name="infonce")},
        {
            "objective": "mae",
            "options": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
            "model": Model(name="test_vit", kwargs={"img_size": 32, "patch_size": 8}),
            "data": SMALL,
        },
    ],
    ids=["mixing", "clip", "mae"],
)
def test_counting_leaves_the_global_generators_as_they_were(values: dict[str, Any]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    assert flops_of_sample(Recipe(**values), 4) > 0
    after = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_cpu_has_no_peak_and_nothing_is_counted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(objective="simclr", model=Model(**TINY_RESNET), data=SMALL)
    assert peak_of(torch.device("cpu"), "bf16") is None
    assert work_of(recipe, 0, devices=3, device=torch.device("cpu")) == Work(devices=3, images=2)
    monkeypatch.setattr(utilisation, "peak_of", lambda device, dtype: 1e12)
    found = work_of(recipe, 0, devices=3, device=torch.device("cpu"))
    assert found == Work(3, 2, flops_of_sample(recipe, 0), 1e12)


@pytest.mark.parametrize("known", [True, False])
def test_a_line_tells_the_pace_of_a_device_and_mfu_where_its_peak_is_known(
    tmp_path: Path, known: bool
) -> None:
    heard: list[dict[str, Any]] = []

    class Listener:
        def __call__(self, line: dict[str, Any]) -> None:
            heard.append(line)

        def close(self) -> None:
            pass

    recorder = Recorder(
        tmp_path,
        is_main=True,
        steps_per_epoch=10,
        global_batch=64,
        device=torch.device("cpu"),
        started=time.perf_counter(),
        observers=[Listener()],
        work=Work(devices=4, images=2, flops=5e9 if known else None, peak=1e12 if known else None),
    )
    recorder.open(0)
    report = StepReport(1.0, 0.1, 0.0, 0.4, 0.1, np.zeros((4, 3)), applied=True)
    recorder.step(1, report)
    recorder.close()
    line = next(iter(metrics_lines(tmp_path / "metrics.jsonl")))
    # 64 samples in half a second on four devices.
    assert line["samples_per_s"] == 128
    assert line["images_per_s_device"] == 64
    assert line.get("mfu") == (0.16 if known else None)
    assert json.loads(json.dumps(heard[0])) == line
