"""What is told of a recipe's size before it is trained."""

from __future__ import annotations

from nml.recipe import Model, Optimizer, Recipe
from pretrain.models import architecture, build_network
from pretrain.size import size_of


def test_the_size_of_a_recipe_is_that_of_its_network() -> None:
    recipe = Recipe(
        model=Model(name="test_resnet"), optimizer=Optimizer(name="adamw"), ema=0.9, objective="classify"
    )
    network = build_network(architecture(recipe, 0), seed=0)
    size = size_of(recipe)
    weights = sum(one.numel() for one in network.parameters())
    statistics = sum(one.numel() for one in network.buffers())
    assert size.parameters == weights
    assert size.dim == network.num_features
    # The weights, their average and two moments.
    assert size.checkpoint_bytes == 4 * (4 * weights + statistics)
    assert size.export_bytes == 4 * (weights + statistics)
