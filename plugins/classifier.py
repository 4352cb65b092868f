"""Any head as a scikit-learn classifier: in pipelines, searches and cross-validation.

::

    search = GridSearchCV(HeadClassifier("nmtune"), {"options__lr": [0.001, 0.01]})
    search.fit(features, names).predict_proba(others)
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nml.errors import UserError, unknown_name
from nml.untrusted import check_object
from plugins.calibration import fit_temperature, probabilities
from plugins.head import Head, hyper_parameters
from plugins.registry import HEADS
from plugins.saved import load_head, save_head

ROWS = 512
"""Samples that are predicted at once."""
_OPTION = "options__"
# What a saved head remembers of classes that need not be texts.
_CLASSES, _KIND = "classifier_classes", "classifier_dtype"
_SETTINGS = "classifier_settings"


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """A head behind the interface of scikit-learn.

    Args:
        head: Registered name, see ``python -m plugins list``.
        options: Hyper-parameters of the head by name, for example ``{"epochs": 10}``; a search sets one of
            them as ``options__epochs``.
        validation_fraction: Share of the samples, 0 to below 1, that is set aside, class by class where that
            can be. The temperature of the probabilities is fitted on them, and heads that choose something
            on validation data choose on them. With 0 the temperature is 1.
        random_state: Seed of everything random in the fit: a number, a ``RandomState`` or None.
        device: Where to fit, for example ``cpu`` or ``cuda:0``.

    Attributes:
        classes_: The K classes, in the order of the columns of ``predict_proba``.
        n_features_in_: D, the width of the features.
        head_: The fitted head.
        temperature_: What its logits are divided by before softmax.
    """

    def __init__(
        self,
        head: str = "lp",
        *,
        options: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "cpu",
    ) -> None:
        self.head = head
        self.options = options
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; where ``deep``, each option as ``options__NAME`` as well."""
        found: dict[str, Any] = super().get_params(deep=deep)
        if deep and isinstance(self.options, Mapping):
            found |= {_OPTION + name: value for name, value in self.options.items()}
        return found

    def set_params(self, **params: Any) -> Self:
        """Set parameters, and options as ``options__NAME``."""
        given = {
            name.removeprefix(_OPTION): params.pop(name) for name in [*params] if name.startswith(_OPTION)
        }
        super().set_params(**params)
        if given:
            self.options = {**(self.options or {}), **given}
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the head.

        Args:
            X: Features [N, D].
            y: Classes [N], of any kind that scikit-learn takes.

        Raises:
            ValueError: If the data, the head or an option cannot be.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        if len(X) < 2:
            raise ValueError(f"n_samples = {len(X)}; possible: 2 or more")
        names, labels = np.unique(y, return_inverse=True)
        seed = _seed(self.random_state)
        fitted, held = self._divide(labels, seed)
        features, classes = torch.from_numpy(X), torch.from_numpy(labels.astype(np.int64))
        try:
            head = self._build()
            head.fit(
                features[fitted],
                classes[fitted],
                validation=None if held is None else (features[held], classes[held]),
                num_classes=len(names),
                seed=seed,
                device=self.device,
            )
        except UserError as error:
            raise ValueError(str(error)) from error
        # Together, and last: no head answers with the classes of a fit that failed.
        self.classes_, self.head_, self.temperature_, self._name = names, head, 1.0, self.head
        self._settings = {
            "validation_fraction": float(self.validation_fraction),
            # Of a generator, which moves on with every use, the seed that it gave.
            "random_state": None if self.random_state is None else seed,
        }
        if held is not None:
            self.temperature_ = fit_temperature(self._logits(X[held]), labels[held])
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the classes [N] of features [N, D]."""
        logits = self._logits(self._checked(X))
        named: npt.NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return named

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of every class, float64 [N, K]."""
        shares = probabilities(self._logits(self._checked(X)), self.temperature_).astype(np.float64)
        return shares / shares.sum(axis=1, keepdims=True)

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return logits / temperature, float64 [N, K]; of two classes the second's minus the first's, [N]."""
        scores = self._logits(self._checked(X)).astype(np.float64) / self.temperature_
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def save(self, folder: str | Path) -> None:
        """Write the fitted head, as ``probes.run --save-heads`` does: safetensors and JSON, nothing pickled.

        ``python -m probes.predict`` and ``python -m probes.export`` take it; :meth:`load` gives it back.
        """
        check_is_fitted(self)
        save_head(
            Path(folder),
            self.head_,
            HEADS.find(self._name, where="head"),
            dim=self.n_features_in_,
            classes=[str(name) for name in self.classes_],
            about={
                _CLASSES: self.classes_.tolist(),
                _KIND: self.classes_.dtype.str,
                _SETTINGS: self._settings,
            },
            temperature=self.temperature_,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return a classifier that :meth:`save` or ``probes.run --save-heads`` wrote, ready to predict.

        Raises:
            UserError: As :func:`plugins.saved.load_head`.
        """
        saved = load_head(folder)
        # What ``probes.run`` saved was no classifier's, and has its defaults.
        settings = check_object(
            saved.about.get(_SETTINGS, {"validation_fraction": 0.0, "random_state": 0}),
            validation_fraction=float | int,
            random_state=int | None,
        )
        estimator = cls(
            saved.name,
            options=hyper_parameters(saved.head),
            validation_fraction=settings["validation_fraction"],
            random_state=settings["random_state"],
        )
        names = np.array(saved.about.get(_CLASSES, saved.classes))
        estimator.classes_ = names.astype(saved.about.get(_KIND, names.dtype))
        estimator.n_features_in_ = saved.dim
        estimator.head_, estimator.temperature_, estimator._name = saved.head, saved.temperature, saved.name
        estimator._settings = settings
        return estimator

    def _build(self) -> Head:
        make = HEADS.load(self.head, where="head")
        if not isinstance(self.options, Mapping | None):
            raise UserError(f"options {self.options!r}", possible="None, or hyper-parameters by name")
        options = self.options or {}
        known = tuple(inspect.signature(make).parameters)
        for name in options:
            if name not in known:
                raise unknown_name(f"options of {self.head}", name, known)
        head: Head = make(**options)
        return head

    def _divide(
        self, labels: npt.NDArray[np.intp], seed: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp] | None]:
        """Return the rows to fit on, and those set aside."""
        share, rows = self.validation_fraction, np.arange(len(labels))
        if not isinstance(share, numbers.Real) or not 0 <= share < 1:
            raise ValueError(f"validation_fraction {share!r}; possible: 0 to below 1")
        if not share:
            return rows, None
        counts = np.bincount(labels)
        held = max(1, round(share * len(labels)))
        # A class of one sample, or fewer places than classes, cannot be divided class by class.
        able = counts.min() > 1 and min(held, len(labels) - held) >= len(counts)
        fitted, held_rows = train_test_split(
            rows, test_size=held, random_state=seed, stratify=labels if able else None
        )
        return np.sort(fitted), np.sort(held_rows)

    def _checked(self, X: Any) -> npt.NDArray[np.float32]:
        check_is_fitted(self)
        checked: npt.NDArray[np.float32] = validate_data(self, X, reset=False, dtype=np.float32)
        return checked

    def _logits(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logits [N, K], the same of a sample whatever it is asked with.

        Products of matrices of other heights round differently, so all have one.
        """
        rest = np.zeros((-len(X) % ROWS, X.shape[1]), np.float32)
        last = np.concatenate([X[len(X) // ROWS * ROWS :], rest])
        blocks = [*torch.from_numpy(X[: len(X) // ROWS * ROWS]).split(ROWS), torch.from_numpy(last)]
        parts = [self.head_.predict_logits(block) for block in blocks if len(block)]
        logits: npt.NDArray[np.float32] = torch.cat(parts)[: len(X)].numpy()
        if not np.isfinite(logits).all():
            raise ValueError(
                f"head {self._name} diverged: its scores are not finite; try a lower learning rate"
            )
        return logits


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
