"""Any head as a scikit-learn classifier: in pipelines, searches and cross-validation.

::

    search = GridSearchCV(HeadClassifier("nmtune"), {"options__lr": [0.001, 0.01]})
    search.fit(features, names).predict_proba(others)
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from nml.labels import Target
from plugins.calibration import fit_temperature, probabilities
from plugins.estimator import HeadEstimator
from plugins.saved import SavedHead

# What a saved head remembers of classes that need not be texts.
_CLASSES, _KIND = "classifier_classes", "classifier_dtype"


class HeadClassifier(ClassifierMixin, HeadEstimator):
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

    _target: ClassVar[Target] = "classification"

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
        names, labels = np.unique(y, return_inverse=True)
        head, settings, held = self._fitted(X, labels.astype(np.int64), len(names))
        # Together, and last: no head answers with the classes of a fit that failed.
        self.classes_, self.head_, self.temperature_, self._name = names, head, 1.0, self.head
        self._settings = settings
        if held is not None:
            self.temperature_ = fit_temperature(self._scores(X[held]), labels[held])
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the classes [N] of features [N, D]."""
        logits = self._scores(self._checked(X))
        named: npt.NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return named

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of every class, float64 [N, K]."""
        shares = probabilities(self._scores(self._checked(X)), self.temperature_).astype(np.float64)
        return shares / shares.sum(axis=1, keepdims=True)

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return logits / temperature, float64 [N, K]; of two classes the second's minus the first's, [N]."""
        scores = self._scores(self._checked(X)).astype(np.float64) / self.temperature_
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def _described(self) -> dict[str, Any]:
        return {
            "classes": [str(name) for name in self.classes_],
            "about": {_CLASSES: self.classes_.tolist(), _KIND: self.classes_.dtype.str},
            "temperature": self.temperature_,
        }

    def _take(self, saved: SavedHead) -> None:
        names = np.array(saved.about.get(_CLASSES, saved.classes))
        self.classes_ = names.astype(saved.about.get(_KIND, names.dtype))
        self.temperature_ = saved.temperature
