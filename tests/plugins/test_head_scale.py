"""The unit that features come in does not matter to a head, and what it fitted to them is kept with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from plugins.gradient_head import GradientHead
from plugins.lp import LinearProbe
from plugins.nmtune import NMTune
from plugins.registry import HEADS
from plugins.trainable import feature_scales
from plugins.trainer import Copy, fit_many

UNITS = (0.003, 0.03, 1.0, 30.0, 300.0)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images).float()[order], torch.from_numpy(labels).long()[order]


def accuracy(head: GradientHead, features: Tensor, labels: Tensor) -> float:
    return 100 * float((head.predict_logits(features).argmax(dim=1) == labels).float().mean())


@pytest.mark.parametrize("name", ["lp", "mlp", "nmtune", "nmtune-released", "bss", "vicreg"])
def test_accuracy_is_the_same_in_every_unit(name: str, digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    found = []
    for unit in UNITS:
        # Copies of one pass whose samples, and so scales, differ.
        heads: list[GradientHead] = [HEADS.load(name)(modality="text", epochs=4) for _ in range(2)]
        rows = [torch.arange(500), torch.arange(700, 800)]
        fit_many(
            [Copy(head, rows=part) for head, part in zip(heads, rows, strict=True)], features * unit, labels
        )
        found.append([accuracy(head, features[800:] * unit, labels[800:]) for head in heads])
    for of_copy in zip(*found, strict=True):
        assert max(of_copy) - min(of_copy) <= 0.5, of_copy
    assert found[0][0] > 50


def test_few_labels_of_unit_vectors_serve_nmtune_no_worse_than_a_linear_probe(
    digits: tuple[Tensor, Tensor],
) -> None:
    # As wide as a small encoder's: a step of AdamW moves a narrow head less.
    lift = torch.randn(64, 192, generator=torch.Generator().manual_seed(1)) / 8
    wide = torch.cat([digits[0], (digits[0] @ lift).relu()], dim=1)
    features, labels = functional.normalize(wide, dim=1), digits[1]
    mean = {}
    for make in (LinearProbe, NMTune):
        heads = [make() for _ in range(3)]
        fit_many(
            [Copy(head, rows=torch.arange(40) + 40 * seed) for seed, head in enumerate(heads)],
            features,
            labels,
        )
        mean[make] = sum(accuracy(head, features[800:], labels[800:]) for head in heads) / len(heads)
    assert mean[NMTune] >= mean[LinearProbe] - 0.5


def test_the_scale_is_the_root_of_the_mean_variance() -> None:
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).double() * 3 + 100
    rows = torch.arange(0, 50, 2)
    expected = [float(part.var(dim=0, correction=0).mean().sqrt()) for part in (features, features[rows])]
    assert feature_scales(features, [None, rows]) == pytest.approx(expected, rel=1e-9)
    # Samples that are all the same have no variance, and zeros have no size.
    assert feature_scales(torch.full((4, 3), -2.0), [None]) == [2.0]
    assert feature_scales(torch.zeros(4, 3), [None]) == [1.0]


def test_features_are_taken_as_they_are_where_that_is_asked_for(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:200] * 7, digits[1][:200]
    raw, scaled = (NMTune(epochs=1, rescale=rescale).fit(features, labels) for rescale in (False, True))
    assert float(raw.state_dict()["scale"]) == 1
    assert float(scaled.state_dict()["scale"]) == pytest.approx(feature_scales(features, [None])[0])
    assert not torch.equal(raw.predict_logits(features), scaled.predict_logits(features))


def test_a_head_saved_before_there_was_a_scale_predicts_what_it_did(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:200], digits[1][:200]
    saved = NMTune(epochs=1, rescale=False).fit(features, labels)
    state = saved.state_dict()
    del state["scale"]
    loaded = NMTune(epochs=1)
    loaded.load_state_dict(state)
    assert torch.equal(loaded.predict_logits(features), saved.predict_logits(features))
    assert torch.equal(loaded.transform(features), saved.transform(features))


def test_transformed_features_are_in_the_unit_of_the_features(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:200], digits[1][:200]
    assert torch.equal(LinearProbe(epochs=1).fit(features, labels).transform(features), features)
    small, large = (NMTune(epochs=1).fit(features * unit, labels) for unit in (1.0, 1000.0))
    torch.testing.assert_close(
        large.transform(features * 1000), 1000 * small.transform(features), rtol=1e-3, atol=1.0
    )


def test_a_copy_that_diverges_leaves_the_others_of_its_pass_alone(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:200], digits[1][:200]
    heads = [NMTune(epochs=2, lr=lr) for lr in (1e-3, 1e30)]
    fit_many([Copy(head) for head in heads], features, labels)
    alone = NMTune(epochs=2, lr=1e-3).fit(features, labels)
    torch.testing.assert_close(
        heads[0].predict_logits(features), alone.predict_logits(features), rtol=1e-3, atol=1e-3
    )
    assert not heads[1].predict_logits(features).isfinite().all()
