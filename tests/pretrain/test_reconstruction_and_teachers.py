"""What mae and dino compute, by their papers' formulas; the kit asks the rest of them."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nml.errors import UserError
from nml.recipe import Data, Model, Recipe
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.objectives.dino import Dino
from pretrain.objectives.mae import MAE

SIDE, PATCH, N = 8, 2, 6
VIT = MAE.small["model"]
OPTIONS = MAE.small["options"]
NARROW = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


class Bare:
    """A network without an engine around it; keeps what it was asked and what it said."""

    device = torch.device("cpu")

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.asked: list[Any] = []
        self.said: list[Any] = []

    def forward(self, *inputs: Any) -> Any:
        self.asked.append(inputs)
        self.said.append(self.network(*inputs))
        return self.said[-1]

    def micro_step(self, *, last: bool) -> Any:
        return contextlib.nullcontext(last)

    def backward(self, loss: torch.Tensor) -> None:
        pass


def pictures(views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(views * N, 3, SIDE, SIDE, generator=generator)
    return Batch(images, torch.zeros(N, dtype=torch.int64), torch.arange(N))


def mae(model: dict[str, Any] = VIT, size: int = SIDE, **options: Any) -> MAE:
    named = {"name": model["name"], "kwargs": model["kwargs"]}
    data = Data(size=size, test_size=size)
    recipe = Recipe(objective="mae", model=Model(**named), data=data, options={**OPTIONS, **options})
    return MAE(recipe, Setting())


def patches(images: np.ndarray) -> np.ndarray:
    """Cut [n, 3, H, W] as the paper's program does: a patch after the other, a pixel after the other."""
    n, side = len(images), SIDE // PATCH
    cut = images.reshape(n, 3, side, PATCH, side, PATCH)
    return np.einsum("nchpwq->nhwpqc", cut).reshape(n, side * side, PATCH**2 * 3)


@pytest.mark.parametrize("normalised", [True, False])
def test_mae_is_the_squared_error_of_the_patches_that_were_not_seen(normalised: bool) -> None:
    objective = mae(normalised=normalised)
    engine, batch = Bare(objective.network().eval()), pictures()
    loss = objective.backward(engine, batch, 3)  # type: ignore[arg-type]
    ((_, places),) = engine.asked
    wanted = patches(batch.images.double().numpy())
    if normalised:
        spread = wanted.var(axis=2, ddof=1, keepdims=True)
        wanted = (wanted - wanted.mean(axis=2, keepdims=True)) / np.sqrt(spread + 1e-6)
    errors = ((engine.said[0].detach().numpy() - wanted) ** 2).mean(axis=2)
    hidden = np.ones_like(errors)
    np.put_along_axis(hidden, places.numpy(), 0.0, axis=1)
    assert hidden.mean() == 0.75
    assert float(loss) == pytest.approx((errors * hidden).sum() / hidden.sum(), rel=1e-5)


def test_the_encoder_of_mae_sees_what_is_not_masked_and_nothing_else() -> None:
    network = mae().network().eval()
    images = pictures().images
    places = torch.tensor([[0, 5]]).repeat(N, 1)
    blank = torch.full_like(images, 0.3)
    # Patch 5 of four in a row is the second of the second row.
    for place in (0, 5):
        row, column = (PATCH * part for part in divmod(place, SIDE // PATCH))
        where = (..., slice(row, row + PATCH), slice(column, column + PATCH))
        blank[where] = images[where]
    torch.testing.assert_close(network(blank, places), network(images, places))
    other = blank.clone()
    other[..., :PATCH, :PATCH] = 0.9
    assert not torch.allclose(network(other, places), network(blank, places))
    # Features are of whole images again.
    assert network(images).shape == (N, 12)
    assert not torch.allclose(network(images), network(blank))


def test_masks_of_mae_depend_on_seed_step_and_sample_alone() -> None:
    objective = mae()
    objective.network()
    samples = torch.arange(N)
    first = objective._places(samples, 3)
    assert torch.equal(objective._places(samples.flip(0), 3), first.flip(0))
    assert not torch.equal(objective._places(samples, 4), first)
    assert len({tuple(sorted(row)) for row in first.tolist()}) > 1


@pytest.mark.parametrize(
    ("model", "size", "options", "named"),
    [
        ({"name": "resnet18", "kwargs": {}}, SIDE, {}, "mae masks patches of a vision transformer"),
        ({**VIT, "kwargs": {**VIT["kwargs"], "global_pool": "avg"}}, SIDE, {}, "before it pools them"),
        (VIT, 16, {}, "recipe.data.size 16: vit_tiny_patch16_224 sees [8, 8] in patches of [2, 2]"),
        (VIT, SIDE, {"mask": 0.99}, "recipe.options.mask 0.99: of 16 patches 0 are seen"),
        (VIT, SIDE, {"decoder_dim": 10}, "recipe.options.decoder_dim 10: does not divide"),
    ],
)
def test_what_mae_cannot_mask_is_refused(model: Any, size: int, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        mae(model, size, **options).network()


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.usefixtures("process_group")
def test_dino_holds_each_view_to_what_the_teacher_says_of_the_other() -> None:
    recipe = Recipe(
        objective="dino",
        model=Model(name="resnet18", kwargs=NARROW, batch_norm="frozen"),
        data=Data(size=SIDE, test_size=SIDE),
        options={**Dino.small["options"], "center_momentum": 0.8},
    )
    objective = Dino(recipe, Setting(total_steps=4))
    network = objective.network().eval()
    objective.begin(network)
    engine, batch = Bare(network), pictures(2)
    tensors = objective.tensors()
    tensors["center"].copy_(torch.linspace(-0.1, 0.1, 8))
    center = tensors["center"].double().numpy()
    loss = objective.backward(engine, batch, 0)  # type: ignore[arg-type]
    said = engine.said[0]["projected"].detach().double().numpy()
    # The teacher is as the network began, and does not depend on the batch here.
    wanted = softmax((said - center) / 0.04)
    guessed = np.log(softmax(said / 0.1))
    one, other = (-(wanted[a] * guessed[b]).sum(axis=1).mean() for a, b in ((_A, _B), (_B, _A)))
    assert float(loss) == pytest.approx((one + other) / 2, rel=1e-4)
    engine.whole_weights = lambda: iter(network.named_parameters())  # type: ignore[attr-defined]
    objective.after_step(engine, 0)  # type: ignore[arg-type]
    np.testing.assert_allclose(tensors["center"], 0.8 * center + 0.2 * said.mean(axis=0), atol=1e-6)


_A, _B = slice(0, N), slice(N, 2 * N)
