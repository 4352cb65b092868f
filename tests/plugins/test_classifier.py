"""Heads behind the interface of scikit-learn: its own checks, its searches, and a file that is no pickle."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle
from sklearn.utils.estimator_checks import check_estimator

from nml.errors import UserError
from plugins import HeadClassifier, HeadRegressor
from plugins.calibration import calibration
from plugins.saved import load_head

# As they come, the digits of the first writers stand first.
X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
TRAIN, TEST = slice(0, 400), slice(400, 800)


@pytest.mark.parametrize(
    "estimator",
    [
        HeadClassifier("lp", options={"epochs": 8}),
        HeadClassifier("knn", validation_fraction=0.2),
        HeadClassifier("logreg", validation_fraction=0.2, options={"grid": [0.1, 1.0]}),
        HeadRegressor("lp", options={"epochs": 30}),
    ],
    ids=repr,
)
def test_every_check_of_scikit_learn_passes(estimator: HeadClassifier | HeadRegressor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = check_estimator(estimator, on_skip=None)
    left = {outcome["check_name"]: outcome["status"] for outcome in outcomes if outcome["status"] != "passed"}
    assert left in ({}, {"check_array_api_input": "skipped"})


@pytest.mark.parametrize("head", ["mlp", "nmtune"])
def test_two_features_are_enough_for_the_default_width(head: str) -> None:
    # What check_classifiers_train asks for, in one of its fits.
    points, classes = make_blobs(n_samples=300, random_state=0)
    points = StandardScaler().fit_transform(points)
    assert HeadClassifier(head).fit(points, classes).score(points, classes) > 0.83


def test_a_search_in_a_pipeline_sets_options_of_the_head() -> None:
    pipeline = make_pipeline(StandardScaler(), HeadClassifier("lp", options={"epochs": 3}))
    search = GridSearchCV(pipeline, {"headclassifier__options__lr": [1e-5, 0.1]}, cv=2)
    search.fit(X[TRAIN], y[TRAIN])
    assert search.best_params_ == {"headclassifier__options__lr": 0.1}
    best = search.best_estimator_[-1]
    assert best.options == {"epochs": 3, "lr": 0.1}
    assert pipeline[-1].options == {"epochs": 3}
    assert clone(best).get_params() == best.get_params()
    assert search.score(X[TEST], y[TEST]) > 0.85


@pytest.mark.parametrize("head", ["lp", "knn"])
def test_probabilities_are_calibrated_on_what_was_set_aside(head: str) -> None:
    plain = HeadClassifier(head).fit(X[TRAIN], y[TRAIN])
    fitted = HeadClassifier(head, validation_fraction=0.25).fit(X[TRAIN], y[TRAIN])
    assert plain.temperature_ == 1 != fitted.temperature_
    assert fitted.predict_proba(X[TEST]).sum(axis=1) == pytest.approx(1)
    scores = fitted.decision_function(X[TEST])
    assert calibration(scores, y[TEST]).ece < 0.06
    assert np.array_equal(fitted.classes_[scores.argmax(axis=1)], fitted.predict(X[TEST]))


@pytest.mark.parametrize("kind", ["int64", "float64", "<U5", "bool", "object"])
def test_a_saved_classifier_is_a_saved_head_and_comes_back_with_its_classes(
    tmp_path: Path, kind: str
) -> None:
    few = np.flatnonzero(y < 2)[:120]
    names = (
        np.array(["", "b"])[y[few]] if kind == "bool" else y[few].astype("<U5" if kind == "object" else kind)
    )
    labels = names.astype(kind)
    options = {"epochs": 2, "hidden": 8}
    first = HeadClassifier("nmtune", options=options, validation_fraction=0.2, random_state=5)
    first.fit(X[few], labels)
    first.save(tmp_path / "head")
    again = HeadClassifier.load(tmp_path / "head")
    assert again.classes_.dtype == labels.dtype
    assert again.options["hidden"] == 8
    assert (again.validation_fraction, again.random_state) == (0.2, 5)
    assert np.array_equal(again.predict(X[few]), first.predict(X[few]))
    assert np.array_equal(again.predict_proba(X[few]), first.predict_proba(X[few]))
    assert load_head(tmp_path / "head").temperature == first.temperature_
    assert sorted(file.name for file in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors"]
    assert json.loads((tmp_path / "head" / "head.json").read_text())["dim"] == 64


@pytest.mark.parametrize(
    ("estimator", "error"),
    [
        (HeadClassifier("lpp"), "^head: unknown name 'lpp'.*did you mean lp"),
        (
            HeadClassifier("lp", options={"epoch": 3}),
            "options of lp: unknown name 'epoch'.*did you mean epochs",
        ),
        (HeadClassifier("lp", options={"epochs": 0}), "epochs 0; possible: 1 or more"),
        (HeadClassifier("lp", validation_fraction=1), "validation_fraction 1; possible: 0 to below 1"),
        (HeadClassifier("mlp", options={"lr": 1e30, "epochs": 3}), "diverged"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error_that_says_why(estimator: HeadClassifier, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        estimator.fit(X[TRAIN], y[TRAIN]).predict(X[TEST])


def test_a_regressor_predicts_numbers_is_searched_and_comes_back(tmp_path: Path) -> None:
    numbers = 50.0 + 2 * X[:, 20] + X[:, 36]
    search = GridSearchCV(HeadRegressor("lp", options={"epochs": 10}), {"options__lr": [1e-6, 0.1]}, cv=2)
    search.fit(X[TRAIN], numbers[TRAIN])
    assert search.best_params_ == {"options__lr": 0.1}
    best = search.best_estimator_
    assert best.score(X[TEST], numbers[TEST]) > 0.8
    best.save(tmp_path / "head")
    assert np.array_equal(HeadRegressor.load(tmp_path / "head").predict(X[TEST]), best.predict(X[TEST]))
    assert load_head(tmp_path / "head").target == "regression"
    with pytest.raises(
        UserError, match="a head of regression; possible: of classification, for HeadClassifier"
    ):
        HeadClassifier.load(tmp_path / "head")
    with pytest.raises(ValueError, match="head knn does not take regression; possible: lp, mlp"):
        HeadRegressor("knn").fit(X[TRAIN], numbers[TRAIN])


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no saved head"):
        HeadClassifier.load(tmp_path)


def test_a_fit_that_fails_leaves_the_classes_of_the_head_that_answers(tmp_path: Path) -> None:
    estimator = HeadClassifier("lp", options={"epochs": 2}).fit(X[TRAIN], y[TRAIN])
    found = estimator.predict(X[TEST])
    estimator.set_params(head="mlp", options__epochs=0)
    with pytest.raises(ValueError, match="epochs 0"):
        estimator.fit(X[TRAIN], y[TRAIN] + 10)
    assert np.array_equal(estimator.predict(X[TEST]), found)
    estimator.save(tmp_path)
    assert np.array_equal(HeadClassifier.load(tmp_path).predict(X[TEST]), found)


def test_numbers_that_single_precision_cannot_tell_apart_are_refused() -> None:
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"y: labels from 1000000000 to 1000000003; .*subtract a constant"):
        HeadRegressor("lp").fit(features, 1e9 + np.arange(4.0))
