"""Heads for wrong labels: each loss is what its paper says, and each head withstands what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from nml.errors import UserError
from plugins.co_teaching import CoTeaching
from plugins.elr import EarlyLearningRegularisation
from plugins.forward import Forward
from plugins.gce import GeneralisedCrossEntropy
from plugins.gradient_head import GradientHead
from plugins.lp import LinearProbe
from plugins.mlp import MLP
from plugins.nmtune_consistency import CosineConsistency, KLConsistency
from plugins.nmtune_gce import NMTuneGCE
from plugins.sce import SymmetricCrossEntropy
from plugins.trainable import Batch
from plugins.trainer import Copy, fit_many

M, D, K = 7, 5, 4


def paired(classes: int) -> tuple[tuple[float, ...], ...]:
    """Return the matrix of noise that gives 40 % of a class the label of the next one."""
    matrix = 0.6 * np.eye(classes) + 0.4 * np.roll(np.eye(classes), 1, axis=1)
    return tuple(map(tuple, matrix.tolist()))


def batch_of(columns: int = K, **more: object) -> Batch:
    generator = torch.Generator().manual_seed(0)
    f, z, scores = (3 * torch.randn(M, width, generator=generator) for width in (D, D, columns))
    return Batch(f, z, scores, torch.arange(M) % K, **more)  # type: ignore[arg-type]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def p_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities [M, K], and that of each label [M], float64."""
    p = softmax(batch.logits.double().numpy())
    return p, p[np.arange(M), batch.labels.numpy()]


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_is_the_box_cox_of_the_likelihood(q: float) -> None:
    _, of_label = p_of(batch_of())
    expected = ((1 - of_label**q) / q).mean()
    for head in (GeneralisedCrossEntropy(q=q), NMTuneGCE(q=q)):
        terms = head.terms(batch_of())
        assert float(terms["gce"]) == pytest.approx(expected, rel=1e-5)
        assert "cross_entropy" not in terms


def test_sce_adds_the_cross_entropy_the_other_way_round() -> None:
    p, of_label = p_of(batch_of())
    one_hot = np.eye(K)[batch_of().labels]
    reverse = -(p * np.where(one_hot == 1, 0.0, -4.0)).sum(axis=1).mean()
    terms = SymmetricCrossEntropy().terms(batch_of())
    assert float(terms["cross_entropy"]) == pytest.approx(0.1 * -np.log(of_label).mean(), rel=1e-5)
    assert float(terms["reverse"]) == pytest.approx(reverse, rel=1e-5)


@pytest.mark.parametrize("zero", [0.0, 4.0])
def test_a_logarithm_of_zero_that_is_not_below_zero_is_refused(zero: float) -> None:
    with pytest.raises(UserError, match=f"zero {zero}; possible: below 0"):
        SymmetricCrossEntropy(zero=zero)


def test_elr_holds_a_sample_to_the_running_mean_of_its_predictions() -> None:
    head = EarlyLearningRegularisation()
    memory, samples = head.build_memory(20, K), torch.tensor([3, 9, 0, 4, 11, 19, 5])
    targets, p = np.zeros((20, K)), p_of(batch_of())[0].clip(1e-4, 1 - 1e-4)
    for _ in range(3):
        terms = head.terms(batch_of(samples=samples, memory=memory))
        targets[samples] = 0.7 * targets[samples] + 0.3 * p / p.sum(axis=1, keepdims=True)
        expected = 3 * np.log(1 - (targets[samples] * p).sum(axis=1)).mean()
        assert float(terms["early_learning"]) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(memory["targets"].numpy(), targets, rtol=1e-5)


def test_forward_scores_the_labels_that_the_noise_would_have_made() -> None:
    batch = batch_of(memory={"transitions": torch.tensor(paired(K))})
    seen = p_of(batch)[0] @ np.array(paired(K))
    expected = -np.log(seen[np.arange(M), batch.labels.numpy()]).mean()
    assert float(Forward(matrix=paired(K)).terms(batch)["forward"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("epoch", "kept"), [(0.0, 7), (5.0, 6), (10.0, 4), (25.0, 4)])
def test_co_teaching_takes_what_the_other_network_finds_easiest(epoch: float, kept: int) -> None:
    batch = batch_of(2 * K, epoch=torch.tensor(epoch))
    parts = np.split(batch.logits.double().numpy(), 2, axis=1)
    losses = [-np.log(softmax(part)[np.arange(M), batch.labels.numpy()]) for part in parts]
    terms = CoTeaching(noise_ratio=0.4).terms(batch)
    for name, own, other in (("first", 0, 1), ("second", 1, 0)):
        chosen = np.argsort(losses[other])[:kept]
        assert float(terms[name]) == pytest.approx(losses[own][chosen].mean(), rel=1e-5)


def test_other_measures_of_consistency() -> None:
    batch = batch_of()
    f, z = batch.features.double().numpy(), batch.transformed.double().numpy()
    cosine = (f * z).sum(axis=1) / np.linalg.norm(f, axis=1) / np.linalg.norm(z, axis=1)
    assert float(CosineConsistency(weight=1.0).terms(batch)["cosine"]) == pytest.approx((1 - cosine).mean())
    p, q = softmax(f / 2), softmax(z / 2)
    expected = 4 * (p * np.log(p / q)).sum(axis=1).mean()
    found = KLConsistency(weight=1.0, temperature=2.0).terms(batch)
    assert float(found["kl"]) == pytest.approx(expected, rel=1e-5)
    assert found.keys() == {"cross_entropy", "kl", "cov", "svd"}


@pytest.mark.parametrize("matrix", [((1.0, 0.0),), ((0.5, 0.4), (0.0, 1.0)), ((1.5, -0.5), (0.0, 1.0))])
def test_a_matrix_that_is_none_is_refused(matrix: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(UserError, match="matrix: row 0"):
        Forward(matrix=matrix)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, and rows to train and to test on."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels).float(), torch.from_numpy(labels), order[:1200], order[1200:]


def flipped(labels: Tensor, rows: Tensor, seed: int, *, to_next: bool) -> Tensor:
    """Return labels of which 40 % of ``rows`` are another: the next one, or any."""
    generator = torch.Generator().manual_seed(seed)
    chosen = rows[torch.randperm(len(rows), generator=generator)[: int(0.4 * len(rows))]]
    steps = torch.randint(1, 10, (len(chosen),), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + (1 if to_next else steps)) % 10
    return noisy


@pytest.mark.parametrize(
    ("head", "settings", "to_next", "gain"),
    [
        (GeneralisedCrossEntropy, {}, False, 5),
        (SymmetricCrossEntropy, {}, False, 4),
        (EarlyLearningRegularisation, {}, False, 3),
        (CoTeaching, {"noise_ratio": 0.4}, False, 4),
        (Forward, {"matrix": paired(10)}, True, 20),
        (Forward, {}, False, 3),
    ],
)
def test_a_head_withstands_the_noise_that_it_is_for(
    digits: tuple[Tensor, Tensor, Tensor, Tensor],
    head: type[GradientHead],
    settings: dict[str, object],
    to_next: bool,
    gain: float,
) -> None:
    features, labels, train, test = digits
    reached = []
    for make, more in ((MLP, {}), (head, settings)):
        copies = [
            Copy(make(epochs=30, lr=0.01, **more), seed, train, flipped(labels, train, seed, to_next=to_next))
            for seed in range(3)
        ]
        fit_many(copies, features, labels, num_classes=10)
        right = [copy.head.predict_logits(features[test]).argmax(dim=1) == labels[test] for copy in copies]  # type: ignore[attr-defined]
        reached.append([100 * float(part.float().mean()) for part in right])
    assert np.subtract(reached[1], reached[0]).mean() > gain, reached


@pytest.mark.parametrize("make", [EarlyLearningRegularisation, Forward, CoTeaching])
def test_a_copy_remembers_for_itself(make: type[GradientHead]) -> None:
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(90, 6, generator=generator), torch.arange(90) % 3
    others = labels.roll(1)
    rows = torch.arange(0, 90, 2)
    copies = [
        Copy(make(epochs=3), 0),
        Copy(make(epochs=3, lr=0.01), 1, rows, others),
        Copy(make(epochs=4), 2),
    ]
    fit_many(copies, features, labels)
    alone = make(epochs=3, lr=0.01).fit(features[rows], others[rows], seed=1, num_classes=3)
    found = copies[1].head.predict_logits(features)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, alone.predict_logits(features), rtol=1e-4, atol=1e-4)


def test_labels_of_a_copy_that_are_not_of_the_training_set_are_refused() -> None:
    with pytest.raises(UserError, match="a copy's labels are"):
        fit_many(
            [Copy(LinearProbe(), labels=torch.zeros(2, dtype=torch.int64))],
            torch.ones(3, 2),
            torch.tensor([0, 1, 1]),
        )
