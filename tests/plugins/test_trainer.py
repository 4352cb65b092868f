"""One batched pass gives each copy what it would get alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from nml.errors import UserError
from plugins import trainer
from plugins.conformance import separable
from plugins.gradient_head import GradientHead
from plugins.lp import LinearProbe
from plugins.nmtune import NMTune
from plugins.nmtune_released import NMTuneReleased
from plugins.sample_order import SampleOrder
from plugins.trainer import Copy, fit_many

DATA = separable(200, seed=0)
TEST = separable(100, seed=1)


def logits(head: GradientHead) -> torch.Tensor:
    return head.predict_logits(TEST.features)


@pytest.mark.parametrize("make", [LinearProbe, NMTune, NMTuneReleased])
def test_each_copy_is_as_if_trained_alone(make: type[GradientHead]) -> None:
    rows = [None, torch.arange(0, 200, 2), torch.arange(37)]
    grid = list(itertools.product(rows, (0, 1), (1e-3, 1e-2), (0.0, 0.1)))
    copies = [
        Copy(make(epochs=3, lr=lr, weight_decay=wd), seed=seed, rows=part) for part, seed, lr, wd in grid
    ]
    fit_many(copies, *DATA)
    for copy in copies:
        alone = make(epochs=3, lr=copy.head.lr, weight_decay=copy.head.weight_decay)
        part = slice(None) if copy.rows is None else copy.rows
        alone.fit(DATA.features[part], DATA.labels[part], num_classes=3, seed=copy.seed)
        expected = logits(alone)
        size = float(expected.abs().max())
        torch.testing.assert_close(logits(copy.head), expected, rtol=0, atol=1e-3 * size)


def test_memory_limit_makes_more_passes_with_the_same_result() -> None:
    def fitted(limit: int) -> list[torch.Tensor]:
        copies = [Copy(LinearProbe(epochs=1), seed=seed) for seed in range(4)]
        fit_many(copies, *DATA, memory_limit=limit)
        return [logits(copy.head) for copy in copies]

    for one, many in zip(fitted(1), fitted(1 << 30), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_heads_that_are_too_wide_to_gain_by_a_stack_are_fitted_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []
    train = trainer.train
    monkeypatch.setattr(
        trainer, "train", lambda part, *_, **more: (passes.append(len(part)), train(part, *_, **more))
    )
    for wide in (1 << 40, 1):
        monkeypatch.setattr(trainer, "WIDE", wide)
        fit_many([Copy(LinearProbe(epochs=1), seed=seed) for seed in range(3)], *DATA)
    assert passes == [3, 1, 1, 1]


def test_heads_of_other_kinds_are_fitted_too() -> None:
    copies = [Copy(LinearProbe(epochs=2)), Copy(NMTune(epochs=2)), Copy(NMTune(epochs=2, weight=0.5))]
    fit_many(copies, *DATA)
    assert all(logits(copy.head).shape == (100, 3) for copy in copies)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_pass_shows_its_steps_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(trainer, "is_interactive", lambda: terminal)
    monkeypatch.setattr(trainer, "SHOWN_AFTER", 0.0)
    fit_many([Copy(LinearProbe(epochs=2), seed=seed) for seed in (0, 1)], *DATA)
    assert ("LinearProbe x 2:" in capsys.readouterr().err) is terminal


def test_one_head_in_two_copies_is_refused() -> None:
    head = LinearProbe()
    with pytest.raises(UserError, match="several copies"):
        fit_many([Copy(head), Copy(head, seed=1)], *DATA)


def test_a_head_that_draws_as_it_trains_is_trained_alone_and_keeps_its_seed() -> None:
    @dataclass(kw_only=True, eq=False)
    class Dropping(GradientHead):
        stackable: ClassVar[bool] = False

        def build_transform(self, in_features: int) -> nn.Module:
            return nn.Dropout(0.5)

    copies = [Copy(Dropping(epochs=2), seed=seed) for seed in (0, 1)]
    fit_many(copies, *DATA)
    alone = Dropping(epochs=2).fit(*DATA, seed=1)
    torch.testing.assert_close(logits(copies[1].head), logits(alone), rtol=0, atol=0)


@pytest.mark.parametrize("samples", [1, 5, 64, 130])
def test_every_epoch_sees_every_sample_once(samples: int) -> None:
    order = SampleOrder(3, samples, None, 0)
    drawn = torch.cat([order.take(7) for _ in range(2 * samples)])
    for epoch in drawn[: len(drawn) // samples * samples].view(-1, samples):
        assert sorted(epoch.tolist()) == list(range(samples))


def test_steps_cover_the_epochs() -> None:
    schedule = LinearProbe(epochs=3).schedule()
    assert schedule.steps(640) == 30
    assert schedule.steps(641) == 31
    assert schedule.steps(10) == 3


def test_few_samples_are_trained_on_for_some_steps_unless_epochs_are_given() -> None:
    assert NMTune().schedule().steps(50) == 600
    assert NMTune().schedule().steps(6400) == 3000
    assert NMTune(epochs=30).schedule().steps(50) == NMTune(least_steps=0).schedule().steps(50) == 30
    assert NMTune(epochs=30, least_steps=40).schedule().steps(50) == 40


def test_on_few_narrow_unit_features_nmtune_is_no_worse_than_lp() -> None:
    pixels, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    features = torch.nn.functional.normalize(pixels.float(), dim=1)
    reached = []
    for make in (LinearProbe, NMTune):
        copies = [Copy(make(), seed, torch.arange(50 * seed, 50 * seed + 50)) for seed in range(8)]
        fit_many(copies, features, labels)
        right = [copy.head.predict_logits(features[400:]).argmax(dim=1) == labels[400:] for copy in copies]
        reached.append(100 * float(torch.stack(right).float().mean()))
    assert reached[1] > reached[0] - 0.5, reached


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_train_on_a_gpu() -> None:
    copies = [Copy(NMTune(epochs=3), seed=seed) for seed in range(3)]
    fit_many(copies, *DATA, device="cuda")
    alone = NMTune(epochs=3).fit(*DATA, seed=2, device="cuda")
    torch.testing.assert_close(logits(copies[2].head), logits(alone), rtol=1e-2, atol=1e-2)
