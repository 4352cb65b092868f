"""What a network would refuse of its first batch is one line, before a run leaves anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nml.errors import UserError
from nml.recipe import Data, Loss, Model, Recipe
from pretrain.assembly import build_objective
from pretrain.classify import Classify
from pretrain.first_pass import check_first_pass
from pretrain.objective import Setting
from pretrain.world import decided_by_all
from tests.pretrain.conftest import DATA, TINY_CLIP, TINY_RESNET

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3}
MOCO = {"objective": "moco", "options": {"queue": 256}}
CLIP = {"objective": "clip", "loss": Loss(name="infonce")}


def _recipe(model: dict[str, Any], size: int, test_size: int, **more: Any) -> Recipe:
    return Recipe(model=Model(**model), data=Data(size=size, test_size=test_size), **more)


def _check(recipe: Recipe, samples: int, parts: int = 1) -> None:
    objective = build_objective(recipe, Setting(num_classes=4, micro_batches=parts))
    network = objective.network()
    objective.begin(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    drawn = torch.random.get_rng_state()
    try:
        check_first_pass(recipe, objective, network, samples=samples)
    finally:
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("model", "sizes", "more", "named"),
    [
        ("vit", (32, 16), {}, "recipe.data.size 32: vit_tiny_patch16_224 sees images of 16 x 16"),
        ("vit", (16, 32), {}, "set recipe.model.kwargs img_size to 32"),
        ("vit", (32, 32), MOCO, "--recipe.data.size 16"),
        ("vit", (32, 16), MOCO, "--recipe.data.size 16"),
        ("clip", (64, 32), CLIP, "set recipe.model.kwargs vision_cfg.image_size to 64"),
        ("clip", (32, 64), CLIP, "--recipe.data.test_size 32"),
        ("vit of any size", (12, 16), {}, "does not take such images: Input height (12) should be divisible"),
    ],
)
def test_images_that_the_network_does_not_take_are_refused_with_both_values(
    model: str, sizes: tuple[int, int], more: dict[str, Any], named: str
) -> None:
    models = {
        "vit": {"name": "vit_tiny_patch16_224", "kwargs": VIT},
        "vit of any size": {"name": "vit_tiny_patch16_224", "kwargs": {**VIT, "dynamic_img_size": True}},
        "clip": TINY_CLIP,
    }
    with pytest.raises(UserError, match=re.escape(named)):
        _check(_recipe(models[model], *sizes, **more), samples=2)


@pytest.mark.parametrize("more", [{}, MOCO])
def test_batch_normalisation_over_one_value_is_refused_and_over_more_is_not(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="normalise over one value"):
        _check(_recipe(TINY_RESNET, 32, 32, **more), samples=1)
    _check(_recipe(TINY_RESNET, 32, 32, **more), samples=2)
    _check(_recipe(TINY_RESNET, 32, 32, **more), samples=2, parts=3)
    if not more:
        _check(_recipe(TINY_RESNET, 64, 32), samples=1)
        _check(_recipe({**TINY_RESNET, "batch_norm": "frozen"}, 32, 32), samples=1)


class AsksTheRanks(Classify):
    """What it makes of images is of all ranks together."""

    def scorer(self, engine: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        together = torch.ones(1)
        dist.all_reduce(together)
        return super().scorer(engine)


def _first_pass_of_one_that_asks(rank: int, size: int) -> str:
    recipe = _recipe({"name": "vit_tiny_patch16_224", "kwargs": VIT}, 16, 32)
    objective = AsksTheRanks(recipe, Setting(rank=rank, world_size=size, num_classes=4))
    network = objective.network()
    try:
        decided_by_all(lambda: check_first_pass(recipe, objective, network, samples=2))
    except UserError as error:
        return str(error)
    return ""


def test_an_objective_may_ask_the_other_ranks_before_it_asks_the_network(
    on_ranks: Callable[..., list[str]], tmp_path: Path
) -> None:
    answers = on_ranks(2, _first_pass_of_one_that_asks, tmp_path / "store")
    assert answers[0] == answers[1]
    assert "recipe.data.test_size 32" in answers[0]


def test_ranks_whose_network_takes_no_such_images_say_so_and_leave_nothing(
    few_captions: Path,
    tmp_path: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    recipe = make_recipe(
        "clip-of-another-size",
        objective="clip",
        model=TINY_CLIP,
        loss={"name": "infonce"},
        data={**DATA, "size": 64},
    )
    run = tmp_path / "run"
    words = ["--recipe", str(recipe), "--shards", str(few_captions), "--run-dir", str(run)]
    out = run_ranks(2, [*words, "--recipe.global_batch", "8"], cwd=tmp_path, status=2)
    assert "error: recipe.data.size 64: RN50 sees images of 32 x 32" in out
    assert "Traceback" not in out
    assert not run.exists()
