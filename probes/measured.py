"""What becomes of the fitted heads of one (encoder, task): result rows of its test sets, and saved heads."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nml.registry import Plugin
from nml.untrusted import parse_json
from plugins.gradient_head import GradientHead
from plugins.head import Head
from plugins.saved import save_head
from plugins.spectra import Convention
from probes.answers import HeadFault, asked, predict, transform
from probes.encoders.encoder import Encoder
from probes.features import Features
from probes.fitting import Fitted
from probes.heads import HeadChoice
from probes.results.row import Row
from probes.results.rowfiles import LARGEST
from probes.samples import SampleSet
from probes.scoring import Scores, Spectrum, calibrated, evaluate, spectrum
from probes.tasks.task import Evaluation, Task

# Rows that tell whether a head leaves features as they are.
LOOK = 64


class Measured:
    """What the heads of one (encoder, task) reach on its test sets; spectra are computed once for all heads.

    Args:
        encoder: The frozen model.
        task: The data.
        features: Each test set with its features.
        train_key: Feature-store key of the training features.
        convention: Singular value convention.
        head_spectra: Whether to compute the spectrum of each head's transformed features, too.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        features: Sequence[tuple[Evaluation, Features]],
        *,
        train_key: str,
        convention: Convention,
        head_spectra: bool,
    ) -> None:
        self.encoder = encoder
        self.task = task
        self.features = features
        self.train_key = train_key
        self.convention = convention
        self.head_spectra = head_spectra
        self._spectra: dict[int, Spectrum] = {}

    def rows(
        self,
        choice: HeadChoice,
        fit: Fitted,
        identity: Callable[[Evaluation], dict[str, Any]],
        *,
        tuned: Callable[[SampleSet], npt.NDArray[np.float32]] | None = None,
        libraries: Sequence[str] = (),
        **more: Any,
    ) -> Iterator[Row]:
        """Yield the row of each test set.

        Args:
            choice: What was fitted.
            fit: The fitted head.
            identity: What identifies the row of a test set.
            tuned: What gives the features that the head was fitted on, where those are not the encoder's but
                of a network that was fine-tuned from it.
            libraries: Packages whose versions are to be told besides.
            more: Further fields of every row.

        Raises:
            HeadFault: If the head diverged or gives back something malformed.
        """
        for number, (evaluation, features) in enumerate(self.features):
            begun = time.perf_counter()
            seen = features.array if tuned is None else tuned(evaluation.samples)
            logits = predict(fit.head, seen, self.task.outputs)
            predict_seconds = time.perf_counter() - begun
            scores = evaluate(logits, evaluation, self.task.metric)
            quality = calibrated(logits, evaluation, fit.temperature)
            # A row that nobody could read would keep all others of the folder from being read.
            if scores.measures.get("rmse", 0.0) > LARGEST:
                raise HeadFault(f"diverged: predict_logits gave numbers up to {np.abs(logits).max():.3g}")
            if quality is not None and quality.nll > LARGEST:
                raise HeadFault(
                    f"diverged: predict_logits gave scores up to {np.abs(logits).max():.3g}, "
                    f"a mean negative log-likelihood of {quality.nll:.3g}"
                )
            own = self._spectrum(number, features)
            reshaped = self._head_spectrum(fit, seen, own if tuned is None else None)
            yield Row(
                **identity(evaluation),
                encoder=self.encoder.info.name,
                encoder_kind=self.encoder.info.kind,
                **dataclasses.asdict(self.encoder.info.provenance),
                hyper_parameters=fit.hyper_parameters,
                selection=fit.selection,
                downstream_model=fit.point.model if fit.point.noise else None,
                n_train=fit.n_train,
                n_validation=fit.n_validation,
                n_test=len(evaluation.samples.keys),
                dim=features.array.shape[1],
                num_classes=len(self.task.classes),
                accuracy=scores.accuracy,
                macro_f1=scores.macro_f1,
                metric_name=scores.metric_name,
                metric=scores.metric,
                temperature=fit.temperature,
                nll=quality.nll if quality else None,
                ece=quality.ece if quality else None,
                measures=self._measures(scores),
                sve=own.sve,
                lsvr=own.lsvr,
                head_sve=reshaped.sve if reshaped else None,
                head_lsvr=reshaped.lsvr if reshaped else None,
                singular_values=tuple(own.values.tolist()),
                train_features=self.train_key,
                features=features.key,
                fit_seconds=fit.seconds,
                predict_seconds=predict_seconds,
                feature_seconds=features.seconds,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
                versions=json.dumps(_versions(self.encoder, choice, libraries), sort_keys=True),
                **{"trained_parameters": _parameters(fit.head), **more},
            )

    def _measures(self, scores: Scores) -> str:
        of_classes = dict(zip(self.task.classes, scores.average_precision, strict=False))
        return json.dumps({**scores.measures, **({"average_precision": of_classes} if of_classes else {})})

    def save(self, folder: Path, plugin: Plugin, fit: Fitted, **more: Any) -> None:
        """Keep a fitted head for later use, see :mod:`plugins.saved`.

        Args:
            folder: Where.
            plugin: Who registered the head.
            fit: The fitted head.
            more: What else to tell about it, JSON-like.

        Raises:
            HeadFault: If its state is none.
        """
        about = {
            "encoder": self.encoder.info.name,
            "encoder_hash": self.encoder.info.hash,
            "task": self.task.name,
            "fraction": float(fit.point.fraction),
            "seed": fit.point.seed,
            "downstream_noise": float(fit.point.noise),
            "downstream_model": fit.point.model if fit.point.noise else None,
            "n_train": fit.n_train,
            "selection": parse_json(fit.selection),
            **more,
        }
        state = asked("state_dict", fit.head.state_dict)
        if not all(isinstance(value, torch.Tensor) for value in dict(state).values()):
            raise HeadFault("state_dict returned values that are no tensors")
        dim = self.features[0][1].array.shape[1]
        save_head(
            folder,
            fit.head,
            plugin,
            dim=dim,
            classes=self.task.classes,
            about=about,
            target=self.task.target,
            temperature=fit.temperature,
            thresholds=fit.thresholds,
        )

    def _spectrum(self, number: int, features: Features) -> Spectrum:
        # By place: names are a task's to choose, and features of files all have their encoder's key.
        if number not in self._spectra:
            self._spectra[number] = spectrum(features.array, self.convention)
        return self._spectra[number]

    def _head_spectrum(
        self, fit: Fitted, features: npt.NDArray[np.float32], own: Spectrum | None
    ) -> Spectrum | None:
        """Return the spectrum of what the head's classifier sees; None if that is not to be computed.

        Args:
            fit: The fitted head.
            features: What it sees.
            own: Their spectrum, where it is known.
        """
        first = features[:LOOK]
        if own is not None and np.array_equal(transform(fit.head, first), first):
            return own
        if not self.head_spectra:
            return None
        return spectrum(transform(fit.head, features), self.convention)


def _parameters(head: Head) -> int | None:
    """Return how many numbers of a head are trained by gradient descent; None of other heads."""
    if not isinstance(head, GradientHead):
        return None
    return sum(part.numel() for part in head.inference_module().parameters())


def _versions(encoder: Encoder, choice: HeadChoice, libraries: Sequence[str]) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": metadata.version("torch"),
        choice.plugin.distribution: choice.plugin.version,
        **{name: metadata.version(name) for name in libraries},
        **encoder.info.versions,
    }
