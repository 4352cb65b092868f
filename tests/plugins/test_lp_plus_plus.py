"""lp++: what its scores are made of, and what the texts do for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins import HeadClassifier
from plugins.lp_plus_plus import LPPlusPlus
from plugins.registry import contract_fault

CLASSES, WIDTH = 5, 32


def few(count: int, seed: int, *, shared: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return features around directions that the texts name, their classes, and the texts."""
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    features = shared + 4 * directions[labels] + 1.2 * torch.randn(count, WIDTH, generator=generator)
    return features, labels, functional.normalize(shared + 4 * directions, dim=1)


def accuracy(head: LPPlusPlus) -> float:
    features, labels, _ = few(500, 1)
    return float((head.predict_logits(features).argmax(dim=1) == labels).float().mean())


def test_scores_are_of_unit_vectors_with_the_blended_weights() -> None:
    features, labels, texts = few(40, 2)
    head = LPPlusPlus(iterations=50).fit(features, labels, class_embeddings=7 * texts)
    state = {name: value.double() for name, value in head.state_dict().items()}
    rows = features.double() / features.double().norm(dim=1, keepdim=True)
    weights = state["prototypes"] + state["multipliers"][:, None] * texts.double()
    torch.testing.assert_close(head.predict_logits(features).double(), rows @ weights.T, rtol=1e-4, atol=1e-3)
    assert head.outcome == {"mean_multiplier": pytest.approx(float(state["multipliers"].mean()), abs=1e-3)}


def test_both_blocks_go_down_the_gradient_of_cross_entropy() -> None:
    features, labels, texts = few(60, 3)
    losses = []
    for iterations in (1, 30, 300):
        head = LPPlusPlus(iterations=iterations).fit(features, labels, class_embeddings=texts)
        losses.append(float(functional.cross_entropy(head.predict_logits(features), labels)))
    assert losses[0] > losses[1] > losses[2]
    # Each multiplier moves against its gradient, by the step that the texts' share of the curvature allows.
    still = LPPlusPlus(iterations=9, momentum=0.0).fit(features, labels, class_embeddings=texts)
    moved = LPPlusPlus(iterations=10, momentum=0.0).fit(features, labels, class_embeddings=texts)
    similar = functional.normalize(features, dim=1) @ texts.T
    state = moved.state_dict()
    alpha = still.state_dict()["multipliers"].clone().requires_grad_()
    scores = functional.normalize(features, dim=1) @ state["prototypes"].T + alpha * similar
    [gradient] = torch.autograd.grad(functional.cross_entropy(scores, labels), alpha)
    step = len(features) / (4 * similar.square().sum(dim=0).max())
    torch.testing.assert_close(state["multipliers"], (alpha - step * gradient).detach(), rtol=1e-5, atol=1e-4)


def test_texts_help_where_samples_are_few() -> None:
    features, labels, texts = few(CLASSES, 4)
    helped = accuracy(LPPlusPlus().fit(features, labels, class_embeddings=texts))
    alone = accuracy(
        LPPlusPlus(text_start=0.0, text_every=1000).fit(features, labels, class_embeddings=texts)
    )
    assert helped > alone + 0.1


def test_without_embeddings_of_these_classes_nothing_is_fitted() -> None:
    features, labels, texts = few(10, 5)
    for given in (None, texts[:-1]):
        with pytest.raises(UserError, match=r"class_embeddings .*; possible: \[5, 32\], one a class"):
            LPPlusPlus().fit(features, labels, class_embeddings=given)
    with pytest.raises(ValueError, match="class_embeddings None"):
        HeadClassifier("lp++").fit(features.numpy(), labels.numpy())

    class Forgets(LPPlusPlus):
        def fit(self, features, labels, *, validation=None, num_classes=None, seed=0, device="cpu"):  # type: ignore
            return self

    assert contract_fault(Forgets) == "its fit() takes no class_embeddings"
