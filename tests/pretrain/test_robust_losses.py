"""Losses for wrong labels and swapped captions: what the papers say, and what a wrong label does in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nml.errors import UserError
from nml.recipe import Data, Loss, Model, Recipe
from plugins.gce import GeneralisedCrossEntropy
from plugins.sce import SymmetricCrossEntropy
from plugins.trainable import Batch as HeadBatch
from pretrain.classify import Classify
from pretrain.clip import Clip
from pretrain.loading import Batch
from pretrain.losses import MeanCost, cost_of
from pretrain.objective import Setting

N, K = 6, 4
GCE, SCE = Loss(name="gce", gce_q=0.6), Loss(name="sce", sce_alpha=0.2, sce_beta=0.7, sce_zero=-5.0)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def gce(scores: np.ndarray, labels: np.ndarray, q: float) -> np.ndarray:
    """Zhang and Sabuncu 2018, equation (6): L_q(f(x), e_j) = (1 - f_j(x)^q) / q."""
    return (1 - softmax(scores)[np.arange(len(labels)), labels] ** q) / q


def sce(scores: np.ndarray, labels: np.ndarray, alpha: float, beta: float, zero: float) -> np.ndarray:
    """Wang et al. 2019: alpha H(t, p) + beta H(p, t), of a one-hot t whose log 0 is A."""
    p, one_hot = softmax(scores), np.eye(scores.shape[1])[labels]
    forward = -(one_hot * np.log(p)).sum(axis=1)
    reverse = -(p * np.where(one_hot == 1, 0.0, zero)).sum(axis=1)
    return alpha * forward + beta * reverse


PAPERS: dict[str, tuple[Loss, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "gce": (GCE, lambda scores, labels: gce(scores, labels, 0.6)),
    "gce, q 1": (Loss(name="gce", gce_q=1.0), lambda scores, labels: gce(scores, labels, 1.0)),
    "sce": (SCE, lambda scores, labels: sce(scores, labels, 0.2, 0.7, -5.0)),
}


def scores_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    scores = 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    return scores.requires_grad_(), torch.arange(N) % K


def loss_of(loss: Loss) -> MeanCost:
    cost = cost_of(loss)
    assert cost is not None
    return MeanCost(cost)


@pytest.fixture(params=PAPERS)
def paper(request: pytest.FixtureRequest) -> tuple[Loss, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    return PAPERS[request.param]


def test_a_loss_of_labels_is_its_papers(paper: Any) -> None:
    loss, reference = paper
    scores, labels = scores_and_labels()
    expected = reference(scores.detach().double().numpy(), labels.numpy()).mean()
    assert float(loss_of(loss)(scores.detach(), labels)) == pytest.approx(expected, rel=1e-5)


def test_of_mixed_images_the_losses_of_both_labels_are_mixed(paper: Any) -> None:
    """As mixup's authors do: lambda L(x, a) + (1 - lambda) L(x, b)."""
    loss, reference = paper
    objective = Classify(
        Recipe(model=Model(name="resnet18"), data=Data(size=8), loss=Loss(**{**vars(loss), "mixup": 0.8})),
        Setting(num_classes=K),
    )
    images = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(N) % K
    seen: list[torch.Tensor] = []

    def forward(mixed: torch.Tensor) -> torch.Tensor:
        seen.append(mixed.clone())
        return mixed.mean((2, 3)).repeat(1, 2)[:, :K] * 5

    engine: Any = SimpleNamespace(
        device=torch.device("cpu"),
        forward=forward,
        micro_step=lambda *, last: nullcontext(last),
        backward=lambda _: None,
    )
    found = objective.backward(engine, Batch(images.clone(), labels, labels), 0)
    share = float(((seen[0] - images.flip(0)) / (images - images.flip(0)))[0].mean())
    scores = (seen[0].mean((2, 3)).repeat(1, 2)[:, :K] * 5).double().numpy()
    mixed = share * reference(scores, labels.numpy()) + (1 - share) * reference(
        scores, labels.flip(0).numpy()
    )
    assert 0.05 < share < 0.95
    assert float(found) == pytest.approx(mixed.mean(), rel=1e-4)


def test_a_loss_is_that_of_the_head_of_its_name() -> None:
    scores, labels = scores_and_labels()
    batch = HeadBatch(scores.detach(), scores.detach(), scores.detach(), labels)
    for head, loss in (
        (GeneralisedCrossEntropy(), Loss(name="gce")),
        (SymmetricCrossEntropy(), Loss(name="sce")),
    ):
        expected = sum(float(term) for term in head.label_terms(batch).values())
        assert float(loss_of(loss)(scores, labels).detach()) == pytest.approx(expected, rel=1e-6)


def test_a_label_pulls_as_hard_as_cross_entropy_times_its_likelihood_to_the_q() -> None:
    scores, labels = scores_and_labels()
    (found,) = torch.autograd.grad(loss_of(GCE)(scores, labels), scores)
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, labels), scores)
    likelihood = scores.detach().softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(found, plain * likelihood**0.6)


@pytest.mark.parametrize("loss", [GCE, SCE])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_label_that_is_ruled_out_costs_a_finite_loss_and_gradient(loss: Loss, mixed: bool) -> None:
    scores = torch.tensor([[0.0, 300.0]], requires_grad=True)
    value = loss_of(loss)(scores, torch.tensor([[1.0, 0.0]]) if mixed else torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value, scores)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["gce", "sce"])
def test_a_caption_is_a_label_among_the_captions_of_the_batch(tiny_clip: dict[str, Any], name: str) -> None:
    loss, reference = PAPERS[name]
    recipe = Recipe(
        objective="clip", model=Model(name=tiny_clip["name"], kwargs=tiny_clip["kwargs"]), loss=loss
    )
    objective = Clip(recipe, Setting())
    generator = torch.Generator().manual_seed(1)
    image, text = (
        torch.nn.functional.normalize(torch.randn(N, 5, generator=generator), dim=1) for _ in range(2)
    )
    output = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(7.0)}
    logits = 7 * image.double().numpy() @ text.double().numpy().T
    own = np.arange(N)
    expected = (reference(logits, own).mean() + reference(logits.T, own).mean()) / 2
    assert float(objective._loss(output)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "gce", "smoothing": 0.1}, "recipe.loss.smoothing 0.1 with recipe.loss.name gce"),
        ({"name": "sce", "smoothing": 0.1}, "recipe.loss.smoothing 0.1 with recipe.loss.name sce"),
        ({"name": "gce", "gce_q": 0.0}, "recipe.loss.gce_q 0.0: is not positive"),
        ({"name": "gce", "gce_q": 1.5}, "recipe.loss.gce_q 1.5: not a share"),
        ({"name": "sce", "sce_zero": 0.0}, "recipe.loss.sce_zero 0.0: no logarithm of 0"),
        ({"name": "sce", "sce_alpha": 0.0, "sce_beta": 0.0}, "nothing is learnt"),
    ],
)
def test_what_a_loss_is_not_defined_for_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        Loss(**values)
