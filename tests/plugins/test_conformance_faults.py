"""A head with one fault fails the check that names the fault."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nml.labels import TARGETS
from plugins.conformance import CHECKS, CheckFailed, Subject, run_checks
from plugins.head import CLASSES_ALONE
from plugins.lp import LinearProbe
from plugins.lp_plus_plus import LPPlusPlus
from plugins.testing import parametrize_head_checks


@dataclass(kw_only=True, eq=False)
class Probe(LinearProbe):
    epochs: int | None = 3

    # Three epochs are too few for numbers.
    targets = CLASSES_ALONE


def head(**methods: Any) -> type[Any]:
    """Return a linear probe with some methods replaced."""
    return type("Faulty", (Probe,), methods)


def wrong_labels(dtype: torch.dtype, change: Any) -> type[Any]:
    """Return a linear probe of every target that learns something else of labels of one dtype."""
    fit = replaced(
        labels=lambda given: change(given["labels"]) if given["labels"].dtype == dtype else given["labels"]
    )
    return type("Faulty", (LinearProbe,), {"fit": fit, "targets": TARGETS})


def fit_then(after: Any) -> Any:
    def fit(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
        Probe.fit(self, features, labels, **more)
        after(self, features, labels, more)
        return self

    return fit


def replaced(**arguments: Any) -> Any:
    """Return a fit that overrides some of its own arguments."""

    def fit(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
        given = {"features": features, "labels": labels, **more}
        changed = {
            name: value(given) if inspect.isfunction(value) else value for name, value in arguments.items()
        }
        return Probe.fit(self, **{**given, **changed})

    return fit


def scores_then(after: Any) -> Any:
    return lambda self, features: after(Probe.predict_logits(self, features), self, features)


class Incomplete:
    """Says what a head is, and leaves a method out."""

    def fit(self, features: Tensor, labels: Tensor, **more: Any) -> Any: ...
    def transform(self, features: Tensor) -> Tensor: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Bare(Probe):
    """Takes no learning rate, and so has none to try."""

    def sweep(self) -> list[dict[str, Any]]:
        return []


class Misspelt(Bare):
    """Takes what it does not know without saying ``**``."""

    def __init__(self, epochs: int = 6, no_such_hyper_parameter: int = 0) -> None:
        super().__init__(epochs=epochs)
        self.no_such_hyper_parameter = no_such_hyper_parameter


class Eager(Bare):
    def __init__(self, *, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(width, 3)


class Careless(LPPlusPlus):
    """Makes up what the text tower should have said."""

    def fit(self, features: Tensor, labels: Tensor, **more: Any) -> Any:
        classes = more.get("num_classes") or int(labels.max()) + 1
        return super().fit(
            features, labels, **{"class_embeddings": torch.eye(classes, features.shape[1]), **more}
        )


class Complicated(Bare):
    def __init__(self, *, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.activation = activation


def _shares_weights(self: Any) -> dict[str, Tensor]:
    return dict(self._fitted().state_dict())


def _forgets_bias(self: Any) -> dict[str, Tensor]:
    state = Probe.state_dict(self)
    return state | {"classifier.bias": torch.zeros_like(state["classifier.bias"]) + 5 * torch.arange(3)}


def _remembers(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
    seed = more.pop("seed", 0) + 7 * getattr(self, "fits", 0)
    self.fits = getattr(self, "fits", 0) + 1
    return Probe.fit(self, features, labels, seed=seed, **more)


def _peeks(given: dict[str, Any]) -> Any:
    held = given.get("validation")
    return given["features"] if held is None else torch.cat([given["features"], held[0]])


def _peeks_labels(given: dict[str, Any]) -> Any:
    held = given.get("validation")
    return given["labels"] if held is None else torch.cat([given["labels"], held[1]])


def _accepts_any_length(given: dict[str, Any]) -> Any:
    return given["features"][: len(given["labels"])]


def _refuses(condition: Any) -> Any:
    def fit(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
        if condition(features, labels):
            raise RuntimeError("not supported")
        return Probe.fit(self, features, labels, **more)

    return fit


def _trains_on_validation(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
    held = more.pop("validation", None)
    if held is not None:
        features, labels = torch.cat([features, held[0]]), torch.cat([labels, held[1]])
    return Probe.fit(self, features, labels, **more)


FAULTS: dict[str, type[Any]] = {
    "has_every_method": Incomplete,
    "init_does_no_work": Eager,
    "hyper_parameters_are_plain": Complicated,
    "refuses_unknown_hyper_parameter": Misspelt,
    "hyper_parameters_unchanged": head(
        fit=fit_then(lambda self, *_: setattr(self, "lr", self.schedule().lr))
    ),
    "settings_to_try": head(sweep=lambda self: [{"no_such_hyper_parameter": 1}]),
    "beats_chance": head(predict_logits=scores_then(lambda scores, *_: scores.roll(1, dims=1))),
    "logits_shape": head(predict_logits=scores_then(lambda scores, *_: scores.double())),
    "transform_shape": head(transform=lambda self, features: features.mean(dim=1)),
    "batch_of_one": head(predict_logits=scores_then(lambda scores, *_: scores.squeeze())),
    "rows_are_independent": head(predict_logits=scores_then(lambda scores, *_: scores - scores.mean(dim=0))),
    "refuses_to_predict_unfitted": head(
        predict_logits=lambda self, features: (
            torch.zeros(len(features), 3) if self._module is None else Probe.predict_logits(self, features)
        )
    ),
    "refuses_labels_of_another_length": head(fit=replaced(features=_accepts_any_length)),
    "fewer_samples_than_features": head(
        fit=_refuses(lambda features, labels: len(features) < features.shape[1])
    ),
    "missing_classes": head(fit=replaced(num_classes=lambda given: len(given["labels"].unique()))),
    "imbalanced_classes": head(
        fit=_refuses(lambda features, labels: bool((labels == 2).float().mean() < 0.2))
    ),
    "half_precision_features": head(fit=_refuses(lambda features, labels: features.dtype == torch.half)),
    "unit_of_features": head(fit=_refuses(lambda features, labels: bool(features.abs().max() > 1000))),
    "strided_features": head(fit=_refuses(lambda features, labels: not features.is_contiguous())),
    "constant_features": head(
        fit=replaced(features=lambda given: given["features"] / given["features"].std(dim=0))
    ),
    "inputs_unchanged": head(fit=fit_then(lambda self, features, labels, more: features.mul_(2))),
    "refit_gives_the_same": head(fit=_remembers),
    "leaves_global_randomness_alone": head(fit=fit_then(lambda *_: torch.rand(1))),
    "state_round_trip": head(state_dict=_forgets_bias),
    "state_is_a_copy": head(state_dict=_shares_weights),
    "outcome_is_plain": head(outcome=property(lambda self: {"weights": self.state_dict()})),
    "trained_together_as_alone": head(
        terms=lambda self, batch: (
            Probe.terms(self, batch) | {"rate": self.schedule().lr * batch.logits.square().mean()}
        )
    ),
    "validation_is_not_peeked_at": head(fit=replaced(features=_peeks, labels=_peeks_labels)),
    "validation_only_chooses": head(fit=_trains_on_validation, uses_validation=True),
    "refuses_to_do_without_class_embeddings": Careless,
    "predicts_numbers": wrong_labels(torch.float32, lambda labels: labels.flip(0)),
    "unit_of_numbers": wrong_labels(torch.float32, lambda labels: labels.clamp(max=5000)),
    "names_several_classes": wrong_labels(torch.bool, torch.logical_not),
}


def test_every_check_has_a_fault_that_it_finds() -> None:
    # This one needs a second device; a test of its own shows its faults.
    assert FAULTS.keys() | {"device_moves"} == CHECKS.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_fault_fails_the_check_that_names_it_and_no_other(name: str) -> None:
    outcomes = {outcome.name: outcome for outcome in run_checks(FAULTS[name])}
    assert [found for found, outcome in outcomes.items() if outcome.status == "FAIL"] == [name]
    assert outcomes[name].message


class Anywhere:
    """Gives fixed scores, computed on no device, so that torch's meta device can stand for a second one."""

    def fit(self, features: Tensor, labels: Tensor, **more: Any) -> Any:
        self.device = more["device"]
        return self

    def predict_logits(self, features: Tensor) -> Tensor:
        return torch.arange(float(len(features))).unsqueeze(1).expand(-1, 3).clone()

    transform = predict_logits

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": torch.ones(2)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def elsewhere(self: Any, features: Tensor) -> Tensor:
    return Anywhere.predict_logits(self, features) + features.is_meta


def fit_elsewhere(self: Any, features: Tensor, labels: Tensor, **more: Any) -> Any:
    self.offset = float(features.is_meta)
    return Anywhere.fit(self, features, labels, **more)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"state_dict": lambda self: {"weight": torch.ones(2, device=self.device)}}, "left weight on meta"),
        ({"predict_logits": elsewhere}, "features on meta"),
        (
            {
                "fit": fit_elsewhere,
                "predict_logits": lambda self, rows: Anywhere.predict_logits(self, rows) + self.offset,
            },
            "training on features that are on meta",
        ),
        (
            {
                "predict_logits": lambda self, rows: (
                    Anywhere.predict_logits(self, rows) + hasattr(self, "device")
                )
            },
            "after the state moved",
        ),
    ],
    ids=["state stays", "features count", "training features count", "state does not carry all"],
)
def test_head_that_ties_its_answers_to_a_device_fails_the_check_of_devices(
    methods: dict[str, Any], message: str
) -> None:
    check = CHECKS["device_moves"]
    check(Subject(Anywhere, "meta"))
    with pytest.raises(CheckFailed, match=message):
        check(Subject(type("Tied", (Anywhere,), methods), "meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_head_that_cannot_take_features_from_the_gpu_fails_the_check_of_devices() -> None:
    outcomes = run_checks(head(fit=_refuses(lambda features, labels: features.is_cuda)), device="cuda")
    assert [outcome.name for outcome in outcomes if outcome.status == "FAIL"] == ["device_moves"]


def test_sound_head_of_the_same_shape_passes() -> None:
    assert {outcome.status for outcome in run_checks(head())} == {"ok", "skip"}


def test_announced_failures_are_not_failures() -> None:
    outcomes = run_checks(
        FAULTS["constant_features"], expected_failures={"constant_features": "divides by 0"}
    )
    assert {o.name: (o.status, o.message) for o in outcomes}["constant_features"] == ("xfail", "divides by 0")


def test_announcing_a_check_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no such check: nonsense"):
        parametrize_head_checks(LinearProbe, expected_failures={"nonsense": ""})
