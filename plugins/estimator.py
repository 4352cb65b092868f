"""What a head is behind the interface of scikit-learn, whatever it predicts."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from nml.errors import UserError, unknown_name
from nml.labels import Target, check_numbers
from nml.untrusted import check_object
from plugins.head import Head, hyper_parameters, targets_of
from plugins.registry import HEADS
from plugins.saved import SavedHead, load_head, save_head

ROWS = 512
"""Samples that are predicted at once."""
_OPTION = "options__"
_SETTINGS = "classifier_settings"


class HeadEstimator(BaseEstimator):
    """Parameters, fit, files and scores of a head; a subclass says what labels and scores mean."""

    # What it predicts.
    _target: ClassVar[Target]

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

    def save(self, folder: str | Path) -> None:
        """Write the fitted head, as ``probes.run --save-heads`` does: safetensors and JSON, nothing pickled.

        ``python -m probes.predict`` and ``python -m probes.export`` take it; :meth:`load` gives it back.
        """
        check_is_fitted(self)
        about = self._described()
        save_head(
            Path(folder),
            self.head_,
            HEADS.find(self._name, where="head"),
            dim=self.n_features_in_,
            about={**about.pop("about", {}), _SETTINGS: self._settings},
            target=self._target,
            **about,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return an estimator that :meth:`save` or ``probes.run --save-heads`` wrote, ready to predict.

        Raises:
            UserError: As :func:`plugins.saved.load_head`, or if the head predicts something else.
        """
        saved = load_head(folder)
        if saved.target != cls._target:
            raise UserError(
                f"{folder}: a head of {saved.target}", possible=f"of {cls._target}, for {cls.__name__}"
            )
        # What ``probes.run`` saved was no estimator's, and has its defaults.
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
        estimator.n_features_in_ = saved.dim
        estimator.head_, estimator._name, estimator._settings = saved.head, saved.name, settings
        estimator._take(saved)
        return estimator

    def _described(self) -> dict[str, Any]:
        """Return what a saved head is to remember, as keywords of ``save_head``."""
        raise NotImplementedError

    def _take(self, saved: SavedHead) -> None:
        """Take over what a saved head remembers."""

    def _fitted(
        self, X: npt.NDArray[np.float32], labels: npt.NDArray[Any], outputs: int
    ) -> tuple[Head, dict[str, Any], npt.NDArray[np.intp] | None]:
        """Return a head fitted on labels [N], the settings of the fit, and the rows that were set aside.

        Raises:
            ValueError: If the head or an option cannot be.
        """
        if len(X) < 2:
            raise ValueError(f"n_samples = {len(X)}; possible: 2 or more")
        seed = _seed(self.random_state)
        fitted, held = self._divide(labels, seed)
        features, given = torch.from_numpy(X), torch.from_numpy(labels)
        try:
            if self._target == "regression":
                check_numbers(labels, "y")
            head = self._build()
            head.fit(
                features[fitted],
                given[fitted],
                validation=None if held is None else (features[held], given[held]),
                num_classes=outputs,
                seed=seed,
                device=self.device,
            )
        except UserError as error:
            raise ValueError(str(error)) from error
        settings = {
            "validation_fraction": float(self.validation_fraction),
            # Of a generator, which moves on with every use, the seed that it gave.
            "random_state": None if self.random_state is None else seed,
        }
        return head, settings, held

    def _build(self) -> Head:
        make = HEADS.load(self.head, where="head")
        if not isinstance(self.options, Mapping | None):
            raise UserError(f"options {self.options!r}", possible="None, or hyper-parameters by name")
        if self._target not in targets_of(make):
            able = HEADS.those(lambda head: self._target in targets_of(head))
            raise UserError(f"head {self.head} does not take {self._target}", possible=", ".join(able))
        options = self.options or {}
        known = tuple(inspect.signature(make).parameters)
        for name in options:
            if name not in known:
                raise unknown_name(f"options of {self.head}", name, known)
        head: Head = make(**options)
        return head

    def _divide(
        self, labels: npt.NDArray[Any], seed: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp] | None]:
        """Return the rows to fit on, and those set aside, of classes int [N] class by class if it can be."""
        share, rows = self.validation_fraction, np.arange(len(labels))
        if not isinstance(share, numbers.Real) or not 0 <= share < 1:
            raise ValueError(f"validation_fraction {share!r}; possible: 0 to below 1")
        if not share:
            return rows, None
        held = max(1, round(share * len(labels)))
        strata = None
        if labels.dtype.kind == "i":
            counts = np.bincount(labels)
            # A class of one sample, or fewer places than classes, cannot be divided class by class.
            able = counts.min() > 1 and min(held, len(labels) - held) >= len(counts)
            strata = labels if able else None
        fitted, held_rows = train_test_split(rows, test_size=held, random_state=seed, stratify=strata)
        return np.sort(fitted), np.sort(held_rows)

    def _checked(self, X: Any) -> npt.NDArray[np.float32]:
        check_is_fitted(self)
        checked: npt.NDArray[np.float32] = validate_data(self, X, reset=False, dtype=np.float32)
        return checked

    def _scores(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the scores [N, K], the same of a sample whatever it is asked with.

        Products of matrices of other heights round differently, so all have one.
        """
        rest = np.zeros((-len(X) % ROWS, X.shape[1]), np.float32)
        last = np.concatenate([X[len(X) // ROWS * ROWS :], rest])
        blocks = [*torch.from_numpy(X[: len(X) // ROWS * ROWS]).split(ROWS), torch.from_numpy(last)]
        parts = [self.head_.predict_logits(block) for block in blocks if len(block)]
        scores: npt.NDArray[np.float32] = torch.cat(parts)[: len(X)].numpy()
        if not np.isfinite(scores).all():
            raise ValueError(
                f"head {self._name} diverged: its scores are not finite; try a lower learning rate"
            )
        return scores


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
