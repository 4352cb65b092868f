"""Zero-shot validation on several ranks, where weights are whole and where they are sharded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nml.recipe import Data, Loss, Model, Optimizer, Recipe
from pretrain.clip import Clip
from pretrain.engines import build_engine
from pretrain.models import build_network
from pretrain.objective import Setting
from pretrain.validation import ValidationData, validate
from pretrain.world import World
from pretrain.zero_shot import Prompts

# Odd numbers: the ranks' shares of the classes and of the images are padded.
NAMES = ("cat", "small dog", "red fish", "bird {odd}", "blue car", "green tree", "yellow sun")
PROMPTS = Prompts(NAMES, ("a photo of a {}.", "{} in a field"))
# The places at which each image's own class is among the scores: 3 of 9 first, 7 of 9 among the first 5.
PLACES = (0, 1, 6, 0, 2, 4, 5, 0, 3)


def images() -> torch.Tensor:
    return torch.randn(len(PLACES), 3, 32, 32, generator=torch.Generator().manual_seed(1))


def scores_of_open_clip(network: Any, tokenizer: Callable[..., Any]) -> torch.Tensor:
    """Return open_clip's own zero-shot scores, [N, K]."""
    from open_clip.zero_shot_classifier import build_zero_shot_classifier

    templates = [lambda name, text=text: text.replace("{}", name) for text in PROMPTS.templates]
    with torch.no_grad():
        classifier = build_zero_shot_classifier(network.eval(), tokenizer, NAMES, templates)
        scores: torch.Tensor = network.encode_image(images(), normalize=True) @ classifier
    return scores


def validated(rank: int, size: int, engine: str, recipe: Recipe, labels: list[int]) -> dict[str, Any]:
    objective = Clip(recipe, Setting(rank=rank, world_size=size, seed=0, micro_batches=1, prompts=PROMPTS))
    network: nn.Module = build_network(objective.architecture, 0)
    built = build_engine(engine, network, recipe, accumulation=1)  # type: ignore[arg-type]
    samples: Any = list(zip(images(), labels, strict=True))
    data = ValidationData("made up", samples, NAMES)
    return validate(built, objective, data, World(rank, size), average=None, workers=0)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_score_as_open_clip_does(
    on_ranks: Callable[..., list[Any]], tmp_path: Path, tiny_clip: dict[str, Any], engine: str
) -> None:
    import open_clip

    recipe = Recipe(
        objective="clip",
        global_batch=16,
        model=Model(name=tiny_clip["name"], kwargs=tiny_clip["kwargs"]),
        data=Data(size=32, test_size=32),
        loss=Loss(name="infonce"),
        optimizer=Optimizer(name="adamw"),
    )
    alone = Clip(recipe, Setting(rank=0, world_size=1, seed=0, micro_batches=1))
    tokenizer = open_clip.get_tokenizer(tiny_clip["name"], context_length=12)
    order = scores_of_open_clip(build_network(alone.architecture, 0), tokenizer).argsort(1, descending=True)
    labels = [int(classes[place]) for classes, place in zip(order, PLACES, strict=True)]
    found = on_ranks(2, validated, tmp_path / "store", engine, recipe, labels)
    assert found[0] == found[1]
    assert found[0] == {"data": "made up", "num_samples": 9, "top1": 3 / 9, "top5": 7 / 9}
