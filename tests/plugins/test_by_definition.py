"""Heads, spectra and schedules equal what their definitions give, computed here a second time and plainly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from plugins.conformance import separable
from plugins.gradient_head import GradientHead
from plugins.head import HELD_OUT
from plugins.knn import NearestNeighbours
from plugins.logreg import LogisticRegression
from plugins.lp import LinearProbe
from plugins.mlp import MLP
from plugins.nmtune_topk import NMTuneTopK
from plugins.schedule import TEXT, TEXT_LINEAR, VISION, VISION_LINEAR, Schedule
from plugins.spectra import CONVENTIONS, Convention, effective_rank, lsvr, rankme, singular_values, sve


def votes(
    train: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int, t: float
) -> list[float]:
    """Let the k samples of the largest cosine vote, each with weight exp(cosine / t), and share the votes."""
    cosines = [float(row @ query / math.sqrt((row @ row) * (query @ query))) for row in train]
    nearest = sorted(range(len(train)), key=lambda row: -cosines[row])[:k]
    weights = [math.exp(cosines[row] / t) for row in nearest]
    return [
        sum(w for w, row in zip(weights, nearest, strict=True) if labels[row] == c) / sum(weights)
        for c in range(classes)
    ]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (200, 1.0)])
def test_neighbours_vote_as_the_definition_says(k: int, temperature: float) -> None:
    train, test = separable(60, seed=0), separable(25, seed=1)
    # Neither of unit length nor around zero, so that the cosine is not the distance.
    features, queries = train.features.double() * 3 + 1, test.features.double() * 0.2 - 0.5
    head = NearestNeighbours(k=k, temperature=temperature).fit(features, train.labels, num_classes=4)
    expected = [
        votes(features.numpy(), train.labels.numpy(), query, 4, min(k, 60), temperature)
        for query in queries.numpy()
    ]
    # Four classes share a hundredth that none falls below.
    np.testing.assert_allclose(head.predict_logits(queries).exp(), np.maximum(expected, 0.0025), atol=1e-5)


def test_neighbours_are_kept_where_they_are_asked_for() -> None:
    train = separable(30, seed=0)
    # What is there has shapes alone, which are not to be copied out.
    state = NearestNeighbours().fit(*train, device="meta")._fitted()
    assert {state[name].device.type for name in ("samples", "labels")} == {"meta"}


def test_neighbours_stay_what_they_were_when_their_labels_change() -> None:
    train = separable(30, seed=0)
    head = NearestNeighbours().fit(*train)
    before = head.predict_logits(train.features)
    train.labels.zero_()
    assert torch.equal(head.predict_logits(train.features), before)


def test_neighbours_that_validation_data_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="validation features have 3 columns"):
        NearestNeighbours().fit(
            *separable(30, seed=0), validation=(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
        )


def test_neighbours_are_kept_as_they_were_and_change_nothing_but_their_type() -> None:
    train = separable(30, seed=0)
    head = NearestNeighbours(k=3).fit(train.features.double(), train.labels, num_classes=5)
    state = head.state_dict()
    assert state["labels"].tolist() == train.labels.tolist()
    assert int(state["num_classes"]) == 5
    assert torch.linalg.vector_norm(state["samples"], dim=1).tolist() == pytest.approx([1] * 30)
    other = NearestNeighbours(k=3)
    other.load_state_dict(state)
    expected = head.predict_logits(train.features)
    for value in state.values():
        value.zero_()
    # Neither head shares its memory with what was handed over.
    assert torch.equal(other.predict_logits(train.features), expected)
    assert torch.equal(head.predict_logits(train.features), expected)
    passed = head.transform(train.features.double().requires_grad_())
    assert (passed.dtype, passed.requires_grad) == (torch.float32, False)
    assert torch.equal(passed, train.features.float())
    with pytest.raises(UserError, match="is not fitted"):
        NearestNeighbours().transform(train.features)


@pytest.mark.parametrize(
    ("name", "value"), [("k", 0), ("temperature", 0.0), ("k", "3"), ("temperature", -1.0)]
)
def test_numbers_that_no_vote_can_have_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        NearestNeighbours(**{name: value})


def test_one_direction_has_no_entropy_not_even_a_negative_zero() -> None:
    for number in (sve([2.0]), lsvr([2.0]), sve([2.0, 0.0]), lsvr([2.0, 0.0])):
        assert (number, math.copysign(1, number)) == (0, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("lr", math.inf), ("weight_decay", -1e-9)],
)
def test_a_schedule_that_trains_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        Schedule(**{name: value})
    Schedule(epochs=1, batch_size=1, lr=1e-9, weight_decay=0.0)


def test_votes_of_many_classes_take_no_memory_and_those_saved_earlier_still_count() -> None:
    train, test = separable(60, seed=0), separable(25, seed=1)
    head = NearestNeighbours().fit(*train, num_classes=50_000)
    assert sum(value.nbytes for value in head.state_dict().values()) < 100_000
    few = NearestNeighbours().fit(*train)
    earlier = few.state_dict()
    earlier["votes"] = functional.one_hot(earlier.pop("labels"), int(earlier.pop("num_classes"))).float()
    loaded = NearestNeighbours()
    loaded.load_state_dict(earlier)
    assert torch.equal(loaded.predict_logits(test.features), few.predict_logits(test.features))


def test_logistic_regression_takes_the_c_that_validation_likes_best() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 30, generator=generator)
    labels = (features[:, 0] + torch.randn(60, generator=generator) > 0).long()
    train, held = (features[:30], labels[:30]), (features[30:], labels[30:])
    right = {}
    for c in (0.001, 0.1, 10.0):
        fixed = LogisticRegression(c=c).fit(*train)
        scores = fixed.predict_logits(held[0])
        right[c] = (
            int((scores.argmax(dim=1) == held[1]).sum()),
            -float(functional.cross_entropy(scores, held[1])),
        )
    best = max(right, key=lambda c: right[c])
    assert len({count for count, _ in right.values()}) > 1
    chosen = LogisticRegression(grid=(10.0, 0.1, 0.001)).fit(*train, validation=held)
    assert chosen.outcome == {"converged": True, "c": best}
    assert torch.equal(
        chosen.predict_logits(features), LogisticRegression(c=best).fit(*train).predict_logits(features)
    )
    # Without validation data all samples are fitted in the end.
    alone = LogisticRegression().fit(*train, seed=1)
    again = LogisticRegression(c=alone.outcome["c"]).fit(*train)
    assert torch.equal(alone.predict_logits(features), again.predict_logits(features))


def prepared(features: np.ndarray, convention: Convention) -> np.ndarray:
    if convention == "row-centred":
        rows = [row / math.sqrt(row @ row) for row in features]
        return np.array([row - sum(row) / len(row) for row in rows])
    return features - sum(features) / len(features) if convention == "column-centred" else features


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_numbers_of_a_spectrum_are_those_of_their_papers(
    convention: Convention, shape: tuple[int, int]
) -> None:
    features = np.random.default_rng(0).standard_normal(shape) * np.linspace(1, 3, shape[1]) + 0.5
    exact = np.linalg.svd(prepared(features, convention), compute_uv=False)
    values = singular_values(features, convention)
    np.testing.assert_allclose(values, exact, atol=1e-6)
    shares = [value / sum(exact) for value in exact]
    entropy = -sum(share * math.log(share) for share in shares if share > 1e-12)
    assert sve(values) == pytest.approx(entropy, abs=1e-5)
    assert lsvr(values) == pytest.approx(-math.log(max(shares)), abs=1e-5)
    assert effective_rank(values) == pytest.approx(math.exp(entropy), rel=1e-5)
    smoothed = [share + 1e-7 for share in shares]
    assert rankme(values) == pytest.approx(math.exp(-sum(p * math.log(p) for p in smoothed)), rel=1e-5)


def test_a_collapsed_spectrum_has_the_constant_that_rankme_adds() -> None:
    values = [1.0, *[0.0] * 99_999]
    # 99,999 shares of 1e-7 each: about a hundredth in all, and not nothing.
    expected = math.exp(-(1 + 1e-7) * math.log(1 + 1e-7) - 99_999 * 1e-7 * math.log(1e-7))
    assert rankme(values) == pytest.approx(expected, rel=1e-6)
    assert rankme(values) > 1.15
    assert effective_rank(values) == 1


@pytest.mark.parametrize("schedule", [VISION, VISION_LINEAR, TEXT, TEXT_LINEAR])
def test_a_rate_starts_in_full_at_the_first_step_and_would_be_zero_one_after_the_last(
    schedule: Schedule,
) -> None:
    steps = 50
    for step in range(steps + 1):
        part = step / steps
        share = (1 + math.cos(math.pi * part)) / 2 if schedule.decay == "cosine" else 1 - part
        assert schedule.rate(step, steps) == pytest.approx(schedule.lr * share, abs=1e-15), f"step {step}"
    assert schedule.rate(0, steps) == schedule.lr


def trained_plainly(
    head: GradientHead, features: Tensor, labels: Tensor, classes: int, seed: int
) -> nn.Module:
    """Train what a head builds by the loop of a textbook: AdamW, one batch after another."""
    module = head.build(features.shape[1], classes, seed=seed)
    module.scale.fill_(features.var(dim=0, correction=0).mean().sqrt())
    schedule = head.schedule()
    samples, size = len(features), min(schedule.batch_size, len(features))
    steps = math.ceil(schedule.epochs * samples / size)
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(samples, generator=generator) for _ in range(schedule.epochs + 1)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=schedule.weight_decay)
    for step, rows in zip(range(steps), torch.cat(epochs).split(size), strict=False):
        part = step / steps
        share = (1 + math.cos(math.pi * part)) / 2 if schedule.decay == "cosine" else 1 - part
        optimizer.param_groups[0]["lr"] = schedule.lr * share
        optimizer.zero_grad()
        functional.cross_entropy(module(features[rows])[2], labels[rows]).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("modality", ["vision", "text"])
@pytest.mark.parametrize("make", [LinearProbe, MLP])
def test_a_head_trains_as_a_plain_loop_does(make: type[GradientHead], modality: str) -> None:
    data = separable(50, seed=0)
    # Batches reach over the end of an epoch: 50 is no multiple of 16.
    head = make(modality=modality, epochs=4, batch_size=16, weight_decay=0.1)
    expected = trained_plainly(head, *data, 3, seed=5).state_dict()
    found = head.fit(*data, num_classes=3, seed=5).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@dataclass(kw_only=True, eq=False)
class Scripted(NMTuneTopK):
    """An nmtune-topk whose candidates are right as often as a script says, and that notes its fits."""

    right: ClassVar[dict[int, int]] = {}
    seen: ClassVar[list[tuple[Any, int, list[float]]]] = []
    judged: ClassVar[list[list[float]]] = []
    _labels: Tensor | None = field(default=None, init=False)

    def fit(self, features: Tensor, labels: Tensor, *, seed: int = 0, **rest: Any) -> Scripted:
        if self.k == "auto":
            return super().fit(features, labels, seed=seed, **rest)
        self.seen.append((self.k, seed, features[:, 0].tolist()))
        return self

    def predict_logits(self, features: Tensor) -> Tensor:
        self.judged.append(features[:, 0].tolist())
        # All samples are of class 1, and the first ones are named so.
        return functional.one_hot((torch.arange(len(features)) < self.right[self.k]).long(), 2).float()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr("plugins.mlp.MLP.fit", lambda self, *_, **__: self)
    Scripted.seen.clear()
    Scripted.judged.clear()
    return Scripted


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ({1: 3, 2: 5, 5: 4, 10: 0}, 2),
        ({1: 0, 2: 1, 5: 2, 10: 3}, 10),
        # Of equals the smaller, wherever the grid names it.
        ({1: 3, 2: 5, 5: 5, 10: 5}, 2),
        ({1: 2, 2: 2, 5: 2, 10: 2}, 1),
    ],
)
def test_the_k_that_validation_likes_best_is_chosen_and_the_smaller_of_equals(
    right: dict[int, int], chosen: int, scripted: type[Scripted]
) -> None:
    scripted.right = right
    features, ones = torch.arange(20.0)[:, None].repeat(1, 3), torch.ones(20, dtype=torch.int64)
    head = scripted(grid=(10, 2, 1, 5)).fit(
        features[:12], ones[:12], validation=(features[12:], ones[12:]), num_classes=2, seed=4
    )
    assert head.chosen_k == chosen
    assert [(k, seed) for k, seed, _ in scripted.seen] == [(1, 4), (2, 4), (5, 4), (10, 4)]
    assert all(rows == list(range(12)) for _, _, rows in scripted.seen)
    assert all(rows == list(range(12, 20)) for rows in scripted.judged)


def test_without_validation_data_a_fifth_drawn_by_the_seed_chooses_and_trains_nothing(
    scripted: type[Scripted],
) -> None:
    scripted.right = {1: 0, 2: 0, 5: 1, 10: 0}
    features, ones = torch.arange(20.0)[:, None].repeat(1, 3), torch.ones(20, dtype=torch.int64)
    assert scripted().fit(features, ones, num_classes=2, seed=4).chosen_k == 5
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4)).tolist()
    assert HELD_OUT == 0.2
    assert all(rows == order[:4] for rows in scripted.judged)
    assert all(rows == order[4:] for _, _, rows in scripted.seen)
