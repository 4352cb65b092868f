"""Activations that are computed again: the same steps to the last bit, less memory, and who cannot."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from nml.errors import UserError
from nml.recipe import Engine as EngineConfig
from nml.recipe import Model, Recipe
from pretrain.batchnorm import running_statistics
from pretrain.engines import check_engine
from pretrain.engines.activations import checkpoint_activations
from pretrain.models import Architecture, build_network
from tests.pretrain.small_engines import ENGINES, around, batch, train

RESNET = Architecture("timm", "resnet18", {"num_classes": 4, "channels": [8] * 4, "drop_path_rate": 0.3})
VIT = Architecture(
    "timm",
    "vit_tiny_patch16_224",
    {"num_classes": 4, "img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 3, "proj_drop_rate": 0.2},
)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("arch", [RESNET, VIT], ids=lambda arch: arch.name)
def test_steps_are_the_same_to_the_last_bit(engine: str, arch: Architecture) -> None:
    found = []
    for again in (False, True):
        built = around(build_network(arch, 0), engine, accumulation=2, checkpoint_activations=again)
        built.network.train()
        torch.manual_seed(0)
        told = train(built, range(3), micro_batches=2)
        found.append((told, built.weights() | running_statistics(built.network)))
    (kept, weights), (again_told, again_weights) = found
    assert again_told == kept
    assert all(torch.equal(again_weights[name], weights[name]) for name in weights)


def test_a_block_keeps_its_input_alone() -> None:
    images, _ = batch(0)
    kept = []
    for again in (False, True):
        network = build_network(VIT, 0)
        if again:
            checkpoint_activations(network)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, told=sizes: told.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            network(images)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        (Architecture("timm", "vgg11", {"num_classes": 4}), "VGG cannot compute its activations again"),
        ("clip", "ModifiedResNet cannot compute its activations again"),
        (None, "Linear cannot compute its activations again"),
    ],
)
def test_a_network_that_cannot_is_told(arch: Any, named: str, tiny_clip: dict[str, Any]) -> None:
    if arch == "clip":
        arch = Architecture("open_clip", tiny_clip["name"], tiny_clip["kwargs"])
    network = torch.nn.Linear(1, 1) if arch is None else build_network(arch, 0)
    with pytest.raises(UserError, match=named):
        checkpoint_activations(network)


def test_both_towers_of_a_clip_of_transformers_do(tiny_clip: dict[str, Any]) -> None:
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    network = build_network(
        Architecture("open_clip", "ViT-B-32", {**tiny_clip["kwargs"], "vision_cfg": vision}), 0
    )
    checkpoint_activations(network)
    switched = [name for name, part in network.named_modules() if getattr(part, "grad_checkpointing", False)]
    assert switched == ["visual.transformer", "transformer"]


@pytest.mark.parametrize(
    ("model", "engine", "named"),
    [
        (Model(batch_norm="sync"), EngineConfig(checkpoint_activations=True), "recipe.model.batch_norm sync"),
        (Model(), EngineConfig(checkpoint_activations=True, compile=True), "recipe.engine.compile with"),
    ],
)
def test_what_it_is_not_proven_with_is_refused(model: Model, engine: EngineConfig, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        check_engine("ddp", Recipe(model=model, engine=engine))
