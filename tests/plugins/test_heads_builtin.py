"""Every head that the project brings keeps the contract; the terms of each are what its name says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from nml.errors import UserError
from plugins.conformance import CHECKS, separable
from plugins.gradient_head import GradientHead
from plugins.nmtune import NMTune
from plugins.nmtune_topk import NMTuneTopK
from plugins.registry import HEADS
from plugins.testing import parametrize_head_checks
from plugins.trainable import Batch

BUILT_IN = [
    HEADS.load(plugin.name) for plugin in HEADS.discover() if plugin.distribution == "noisy-model-learning"
]


@parametrize_head_checks(*BUILT_IN)
def test_head_keeps_its_promises(check: Callable[[], None]) -> None:
    check()


def test_the_kit_has_at_least_fifteen_checks() -> None:
    assert len(CHECKS) >= 15
    assert all(function.__doc__ for function in CHECKS.values())


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("lp", set()),
        ("mlp", set()),
        ("nmtune", {"mse", "cov", "svd"}),
        ("nmtune-mse", {"mse"}),
        ("nmtune-cov", {"cov"}),
        ("nmtune-svd", {"svd"}),
        ("nmtune-mse-cov", {"mse", "cov"}),
        ("nmtune-mse-svd", {"mse", "svd"}),
        ("nmtune-cov-svd", {"cov", "svd"}),
    ],
)
def test_head_adds_the_terms_of_its_name(name: str, terms: set[str]) -> None:
    head: GradientHead = HEADS.load(name)()
    batch = Batch(torch.randn(8, 5), torch.randn(8, 5), torch.randn(8, 3), torch.arange(8) % 3)
    assert head.terms(batch).keys() == {"cross_entropy"} | terms


@pytest.mark.parametrize(("layers", "linear"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_depth_counts_the_linear_layers_before_the_classifier(layers: int, linear: int) -> None:
    module = NMTune(layers=layers, hidden=7).build(5, 3)
    found = [part for part in module.transform.modules() if isinstance(part, torch.nn.Linear)]
    assert len(found) == linear
    assert found[-1].out_features == 5


@pytest.mark.parametrize(
    ("head", "modality", "lr", "weight_decay", "epochs", "decay"),
    [
        ("lp", "vision", 0.1, 0.0, 30, "cosine"),
        ("lp", "text", 0.01, 0.0, 10, "linear"),
        ("lp-released", "vision", 0.01, 1e-4, 30, "cosine"),
        ("nmtune-released", "vision", 1e-3, 1e-4, 30, "cosine"),
        ("nmtune", "vision", 1e-3, 1e-4, 30, "cosine"),
        ("nmtune", "text", 1e-3, 1e-4, 10, "linear"),
    ],
)
def test_schedules_are_the_papers(
    head: str, modality: str, lr: float, weight_decay: float, epochs: int, decay: str
) -> None:
    schedule = HEADS.load(head)(modality=modality).schedule()
    assert (schedule.lr, schedule.weight_decay, schedule.epochs, schedule.decay) == (
        lr,
        weight_decay,
        epochs,
        decay,
    )
    assert schedule.rate(0, 100) == pytest.approx(lr)
    assert schedule.rate(50, 100) == pytest.approx(lr / 2)
    assert schedule.rate(99, 100) < lr / 50


@pytest.mark.parametrize("name", ["lp-released", "nmtune-released"])
def test_released_heads_begin_with_the_weights_of_the_authors_code(name: str) -> None:
    module = HEADS.load(name)().build(150, 100)
    bound = math.sqrt(6 / 150)
    assert bound * 0.99 < float(module.classifier.weight.detach().abs().max()) <= bound
    assert not module.classifier.bias.any()
    assert name == "lp-released" or bool((module.transform.scale == 1).all())


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": 0.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"modality": "audio"},
        {"weight": -1.0},
        {"activation": "x"},
    ],
)
def test_impossible_hyper_parameters_are_refused_when_given(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        NMTune(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "name", "value", "possible"),
    [
        ("mlp", "layers", 2.5, "a whole number"),
        ("mlp", "hidden", "wide", "a whole number or None"),
        ("mlp", "batch_size", True, "a whole number"),
        ("lp", "lr", float("nan"), "a finite number or None"),
        ("logreg", "max_iter", 100.5, "a whole number"),
        ("logreg", "standardise", 1, "True or False"),
        ("knn", "k", None, "a whole number"),
        ("nmtune-released", "hidden_ratio", 0.5, "a whole number"),
        ("nmtune-released", "k", 0, "1 or more"),
        ("nmtune-topk", "grid", [1, 2.5], "a list, each a whole number"),
        ("nmtune-topk", "k", "some", "a whole number or auto"),
        ("bss", "k", -1, "1 or more"),
        ("vicreg", "variance", -1.0, "0 or more"),
    ],
)
def test_a_hyper_parameter_of_another_kind_is_refused_with_what_is_possible(
    head: str, name: str, value: object, possible: str
) -> None:
    with pytest.raises(UserError, match=re.escape(f"{name} {value!r}")) as error:
        HEADS.load(head)(**{name: value})
    assert error.value.possible == possible


def test_chosen_k_is_of_the_grid_and_survives_saving() -> None:
    data = separable(60, seed=0)
    head = NMTuneTopK(grid=(2, 3), epochs=2).fit(*data, validation=separable(30, seed=1))
    assert head.chosen_k in (2, 3)
    again = NMTuneTopK(grid=(2, 3), epochs=2)
    again.load_state_dict(head.state_dict())
    assert again.chosen_k == head.chosen_k
