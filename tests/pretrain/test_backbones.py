"""Networks of every family that timm has: which parameters decay, and what FSDP shards together.

Networks lie on the meta device, which has shapes and no numbers: a family costs a fraction of a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.overrides import TorchFunctionMode

from nml.errors import UserError
from nml.recipe import Model, Optimizer, Recipe
from pretrain.engines import build_engine
from pretrain.engines.fsdp import units
from pretrain.optimizers import recipe_groups

# docs/pretraining.md names them: blocks that share parameters, and layers that are most of a network.
LITTLE_IN_UNITS = {"coat": 0.05}
LARGE_UNITS = {"efficientvit_mit": 0.9, "mobilenetv3": 0.7, "repghost": 0.6, "tiny_vit": 0.6, "vgg": 0.95}
_SMALL = (
    "pico",
    "femto",
    "atto",
    "nano",
    "tiny",
    "xxs",
    "xx_small",
    "_xs",
    "small",
    "_s0",
    "_m0",
    "_b0",
    "_050",
)


def small_model(family: str) -> str:
    """Return a model of a module of timm's whose name says that it is small, where one does."""
    names = timm.list_models(module=family)
    ranks = {name: [word in name for word in (*_SMALL, "_s", "18", "0")] for name in names}
    return min(names, key=lambda name: (ranks[name].index(True) if any(ranks[name]) else 99, len(name), name))


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = timm.create_model(name, **kwargs)
    return network


def owners(network: nn.Module) -> dict[int, nn.Module]:
    """Return the unit of each parameter that has one: the innermost."""
    found: dict[int, nn.Module] = {}
    for unit in units(network):
        for parameter in unit.parameters():
            found.setdefault(id(parameter), unit)
    return found


class Gathered(TorchFunctionMode):
    """Notes parameters that are used while their unit is not in its forward pass: they would be shards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.owners = owners(network)
        self.inside: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.outside: set[str] = set()
        for unit in set(self.owners.values()):
            unit.register_forward_pre_hook(self.enter)
            unit.register_forward_hook(self.leave)

    def enter(self, unit: nn.Module, inputs: Any) -> None:
        self.inside.append(unit)
        self.called.add(unit)

    def leave(self, unit: nn.Module, inputs: Any, outputs: Any) -> None:
        self.inside.remove(unit)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = [*args, *(kwargs or {}).values()]
        lists = [value for value in values if isinstance(value, list | tuple)]
        for value in chain(values, *lists):
            unit = self.owners.get(id(value))
            shape_alone = getattr(function, "__name__", "") in ("__get__", "size", "dim")
            if unit is not None and unit not in self.inside and not shape_alone:
                self.outside.add(f"{function} of {type(unit).__name__}")
        return function(*args, **(kwargs or {}))


def passed_forward(network: nn.Module, size: tuple[int, ...]) -> Gathered:
    seen = Gathered(network)
    with torch.device("meta"), seen:
        network(torch.empty(2, *size, device="meta"))
    return seen


@pytest.mark.parametrize("family", timm.list_modules())
def test_a_network_of_each_family_decays_as_in_timm_and_is_sharded_in_parts(family: str) -> None:
    network = on_meta(small_model(family))
    recipe = Recipe(optimizer=Optimizer(name="adamw", weight_decay=0.05))
    spared = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(network, 0.05, no_weight_decay_list=spared)
    assert decays(recipe_groups(network, recipe)) == decays(theirs)

    total = sum(parameter.numel() for parameter in network.parameters())
    shares = dict.fromkeys(units(network), 0.0)
    owner = owners(network)
    for parameter in network.parameters():
        if id(parameter) in owner:
            shares[owner[id(parameter)]] += parameter.numel() / total
    assert sum(shares.values()) >= LITTLE_IN_UNITS.get(family, 0.9)
    assert max(shares.values()) <= LARGE_UNITS.get(family, 0.5)
    assert 4 <= len(shares) <= 100

    seen = passed_forward(network, network.default_cfg.get("input_size") or (3, 224, 224))  # type: ignore[union-attr,operator]
    assert seen.outside == set()
    assert seen.called == set(owner.values())


def decays(groups: list[dict[str, Any]]) -> dict[int, float]:
    return {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_both_towers_of_a_clip_are_sharded_in_parts(name: str) -> None:
    import open_clip

    kwargs = {"output_dict": True, "nonscalar_logit_scale": True, "pretrained_text": False}
    network = open_clip.create_model(name, device="meta", **kwargs)
    total = sum(parameter.numel() for parameter in network.parameters())
    found = owners(network)
    inside = [parameter for parameter in network.parameters() if id(parameter) in found]
    assert sum(parameter.numel() for parameter in inside) >= 0.9 * total
    names = {id(module): path for path, module in network.named_modules()}
    paths = [names[id(unit)] for unit in units(network)]
    assert len([path for path in paths if path.startswith("visual.")]) >= 10
    assert len([path for path in paths if "transformer.resblocks." in path and "visual" not in path]) == 12
    seen = Gathered(network)
    with torch.device("meta"), seen:
        network(torch.empty(2, 3, 224, 224), torch.zeros(2, network.context_length, dtype=torch.int64))
    assert seen.outside == set()
    assert seen.called == set(found.values())


def test_a_weight_that_is_used_without_calling_its_unit_is_noticed() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.parts[1](self.parts[0](x)), self.parts[2].weight)

    with torch.device("meta"):
        seen = passed_forward(Peeks(), (8,))
    assert len(seen.called) == 2
    assert len(seen.outside) == 1


BACKBONES = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    ),
    "convnext": ("convnext_atto", {"dims": (8, 16, 32, 64), "depths": (1, 1, 6, 1)}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2)},
    ),
    "mobilenet": ("mobilenetv3_small_050", {}),
}


def losses(rank: int, size: int, engine: Any, name: str) -> np.ndarray:
    """Train a small backbone in float64 for 3 steps; return losses, norms and sums of the weights."""
    model, kwargs = BACKBONES[name]
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=4, **kwargs).double()
    recipe = Recipe(
        model=Model(name=model), optimizer=Optimizer(name="adamw", lr=1e-3, weight_decay=0.1, clip=1.0)
    )
    made = build_engine(engine, network, recipe, accumulation=1)
    generator = torch.Generator().manual_seed(rank)
    found = []
    for step in range(3):
        images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
        with made.micro_step(last=True):
            torch.manual_seed(step)
            loss = nn.functional.cross_entropy(made.forward(images), torch.arange(8) % 4)
            made.backward(loss)
        found += [loss.item(), made.step(1e-3).norm]
    weights = made.weights()
    return np.array([*found, *(float(weight.abs().sum()) for weight in weights.values())])


@pytest.mark.parametrize("name", BACKBONES)
def test_fsdp_takes_the_steps_of_ddp(on_ranks: Callable[..., list[Any]], tmp_path: Path, name: str) -> None:
    ddp, fsdp = (on_ranks(2, losses, tmp_path / engine, engine, name) for engine in ("ddp", "fsdp"))
    for theirs, ours in zip(ddp, fsdp, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_in_which_other_parameters_decayed_is_refused(
    process_group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kwargs = BACKBONES["vit"]
    recipe = Recipe(model=Model(name=model), optimizer=Optimizer(name="adamw", weight_decay=0.1))

    def make() -> Any:
        return build_engine("ddp", timm.create_model(model, num_classes=4, **kwargs), recipe, accumulation=1)

    with monkeypatch.context() as patch:
        # As it was before timm was asked.
        patch.setattr(timm.models.VisionTransformer, "no_weight_decay", lambda self: set())
        before = make()
    for engine in (before, make()):
        folder = tmp_path / str(id(engine))
        engine.save(folder, {}, {}).result()
    with pytest.raises(UserError, match=r"cls_token.weight_decay 0.1, and this version trains with 0.0"):
        make().load(tmp_path / str(id(before)), {}, {}, world_size=1)
    make().load(folder, {}, {}, world_size=1)
