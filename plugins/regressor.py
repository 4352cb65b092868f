"""A head of numbers as a scikit-learn regressor: in pipelines, searches and cross-validation.

::

    search = GridSearchCV(HeadRegressor("mlp"), {"options__lr": [0.001, 0.01]})
    search.fit(features, scores).predict(others)
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from nml.labels import Target
from plugins.estimator import HeadEstimator


class HeadRegressor(RegressorMixin, HeadEstimator):
    """A head that predicts numbers behind the interface of scikit-learn.

    Args:
        head: Registered name of a head that takes numbers, for example ``lp``, ``mlp`` or ``nmtune``.
        options: Hyper-parameters of the head by name; a search sets one of them as ``options__epochs``.
        validation_fraction: Share of the samples, 0 to below 1, that is set aside for heads that choose
            something on validation data.
        random_state: Seed of everything random in the fit: a number, a ``RandomState`` or None.
        device: Where to fit, for example ``cpu`` or ``cuda:0``.

    Attributes:
        n_features_in_: D, the width of the features.
        head_: The fitted head.
    """

    _target: ClassVar[Target] = "regression"

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the head.

        Args:
            X: Features [N, D].
            y: Numbers [N].

        Raises:
            ValueError: If the data, the head or an option cannot be.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        head, settings, _ = self._fitted(X, np.asarray(y, dtype=np.float64), 1)
        self.head_, self._name, self._settings = head, self.head, settings
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the numbers [N] of features [N, D]."""
        return self._scores(self._checked(X))[:, 0]

    def _described(self) -> dict[str, Any]:
        return {"classes": (), "temperature": None}
