"""A study: encoders x tasks x heads x fractions x seeds x downstream noise, from one feature pass each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nml.cli import is_interactive, log
from nml.errors import UserError
from plugins.saved import is_saved
from plugins.spectra import Convention
from probes.answers import HeadFault
from probes.downstream_noise import SYMMETRIC
from probes.encoders.encoder import Encoder
from probes.encoders.feature_files import FileEncoder
from probes.features import Features, FeatureStore, feature_pass
from probes.fitting import Failed, fit_points
from probes.heads import HeadChoice
from probes.matching import evaluations_of
from probes.measured import Measured
from probes.results.row import Row, identify
from probes.results.rowfiles import claim, read_ids, write_rows
from probes.splits import Carving, carve, store_split
from probes.study import study_of, texts_of
from probes.tasks.task import Evaluation, Task
from probes.training_data import Point, TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure on one (encoder, task).

    Attributes:
        heads: The heads and their candidates.
        fractions: Shares of the training data.
        seeds: Seeds of each fit.
        noises: Downstream label noise ratios.
        noise_models: Which labels become which, see :mod:`probes.downstream_noise`; each at every ratio.
        views: Augmented views of the training data beyond the plain one.
        convention: Singular value convention.
        head_spectra: Whether to compute the spectrum of each head's transformed features, too.
        device: Where to fit.
        results: Where rows go.
        store: Where features are kept.
        heads_folder: Where the fitted heads are saved; None for nowhere.
    """

    heads: Sequence[HeadChoice]
    fractions: Sequence[Fraction]
    seeds: Sequence[int]
    noises: Sequence[Fraction]
    noise_models: Sequence[str] = (SYMMETRIC,)
    views: int = 0
    convention: Convention = "raw"
    head_spectra: bool = True
    device: str = "cpu"
    results: Path
    store: FeatureStore
    heads_folder: Path | None = None

    def labellings(self) -> list[tuple[Fraction, str]]:
        """Return every (ratio, noise model); without noise they are all one."""
        return list(
            dict.fromkeys(
                (noise, model if noise else SYMMETRIC)
                for model, noise in itertools.product(self.noise_models, self.noises)
            )
        )

    def points(self) -> list[Point]:
        """Return every (fraction, seed, noise)."""
        return [
            Point(fraction, seed, *labelling)
            for labelling, fraction, seed in itertools.product(self.labellings(), self.fractions, self.seeds)
        ]


Piece = tuple[str, Callable[[TrainingData, Measured], None]]
"""A text that names a piece of work in every process, and what does it."""


def probes_of(encoders: Sequence[Encoder], task: Task, plan: Plan) -> list[Probe]:
    """Return the measurements of every encoder on one task; all see the same division of its samples."""
    carving = carve(task.train.keys, task.train.labels, published=task.validation is not None)
    return [Probe(encoder, task, plan, carving) for encoder in encoders]


class Probe:
    """The measurements of one encoder on one task.

    Args:
        encoder: The frozen model.
        task: The data.
        plan: What to measure.
        carving: The task's training samples divided.
    """

    def __init__(self, encoder: Encoder, task: Task, plan: Plan, carving: Carving) -> None:
        self.encoder = encoder.of_task(task.name) if isinstance(encoder, FileEncoder) else encoder
        self.task = task
        self.plan = plan
        self.carving = carving
        self.evaluations = evaluations_of(encoder, task)
        # Heads that failed, by name and point; they are not tried again.
        self.failed: dict[tuple[str, Point], str] = {}

    @functools.cached_property
    def ids(self) -> frozenset[str]:
        """The ids of all rows asked for."""
        return frozenset(identify(**identity) for identity in self.identities())

    def run(self, *, wait: bool) -> None:
        """Compute rows that the results folder does not have, leaving it those of other processes.

        Args:
            wait: Whether to wait for pieces that another process works on, and do what it leaves undone
                if it is killed. Otherwise they are passed over.
        """
        heads = itertools.product(self.plan.heads, self.plan.points())
        if self.ids <= self.done() and not any(itertools.starmap(self.unsaved, heads)):
            return
        store_split(self.plan.results, self.task.split_hash, self.task.train.keys, self.carving)
        data, train_key = self._training_data()
        tests = [(evaluation, self._features(evaluation)) for evaluation in self.evaluations]
        self._check_widths(data, tests)
        measured = Measured(
            self.encoder,
            self.task,
            tests,
            train_key=train_key,
            convention=self.plan.convention,
            head_spectra=self.plan.head_spectra,
        )
        for work, measure in tqdm(
            list(self.pieces()), desc=f"heads on {self.task.name}", disable=not is_interactive(), leave=False
        ):
            with claim(self.plan.results, work, wait=wait) as mine:
                if mine:
                    measure(data, measured)

    def pieces(self) -> Iterator[Piece]:
        """Yield what processes divide among themselves: a text that is the same in all, and the work."""
        for choice, labelling in itertools.product(self.plan.heads, self.plan.labellings()):
            work = f"{self.encoder.info.hash} {self.task.name} {choice.plugin.name} {labelling[0]}"
            work += "" if labelling[1] == SYMMETRIC else f" {labelling[1]}"
            yield work, functools.partial(self._measure, choice, labelling)

    def _check_widths(self, data: TrainingData, tests: Sequence[tuple[Evaluation, Features]]) -> None:
        """Refuse features of one encoder that differ in width: some were cached before it changed."""
        width = data.features.shape[1]
        others = {evaluation.name: features.array for evaluation, features in tests}
        if data.validation_features is not None:
            others["validation data"] = data.validation_features
        for name, array in others.items():
            if array.shape[1] != width:
                raise UserError(
                    f"encoder {self.encoder.info.name}: features of {name} have {array.shape[1]} dimensions, "
                    f"those of the training data {width}",
                    mend="the encoder changed under its name; remove its entries of the feature store "
                    f"(python -m probes.features list {self.plan.store.folder}) and run again",
                )

    def _measure(
        self,
        choice: HeadChoice,
        labelling: tuple[Fraction, str],
        data: TrainingData,
        measured: Measured,
    ) -> None:
        # Only now that the piece is ours: another process may just have finished it.
        done = self.done()
        missing = [
            point
            for point in self.plan.points()
            if (point.noise, point.model) == labelling
            and (choice.plugin.name, point) not in self.failed
            and (
                not {self.id(choice, point, evaluation) for evaluation in self.evaluations} <= done
                or self.unsaved(choice, point)
            )
        ]
        if missing:
            begun = time.perf_counter()
            rows: list[Row] = []
            for fit in fit_points(choice, data, missing, self.task.metric, self.plan.device):
                try:
                    if isinstance(fit, Failed):
                        raise HeadFault(fit.reason)
                    found = list(
                        measured.rows(choice, fit, functools.partial(self.identity, choice, fit.point))
                    )
                    # First: a result that is there is not computed again, and its head would be missing
                    # for good.
                    if folder := self.head_folder(choice, fit.point):
                        measured.save(folder, choice.plugin, fit)
                except HeadFault as fault:
                    self.failed[choice.plugin.name, fit.point] = str(fault)
                else:
                    rows += found
            self.tell_failed(choice, missing)
            write_rows(self.plan.results, [row for row in rows if row.row_id not in done])
            log(
                f"{choice.plugin.name} on {self.encoder.info.name}, {self.task.name}"
                + (f", {_told(*labelling)}" if labelling[0] else "")
                + f": {len(missing)} fit(s) in {time.perf_counter() - begun:.0f} s"
            )

    def tell_failed(self, choice: HeadChoice, points: Sequence[Point]) -> None:
        """Print a line on each kind of failure among the fits of these points."""
        reasons: dict[str, list[Point]] = defaultdict(list)
        for point in points:
            if (reason := self.failed.get((choice.plugin.name, point))) is not None:
                reasons[reason].append(point)
        for reason, those in reasons.items():
            first = those[0]
            where = f"fraction {float(first.fraction):g}, seed {first.seed}"
            if first.noise:
                where += f", {_told(first.noise, first.model)}"
            tqdm.write(
                f"warning: {choice.plugin.name} on {self.encoder.info.name}, {self.task.name}: {reason}; "
                f"no result of {len(those)} of {len(points)} fit(s), the first with {where}",
                file=sys.stderr,
            )

    def done(self) -> set[str]:
        """Return the ids of the rows that are there."""
        return read_ids(self.plan.results, head_spectra=self.plan.head_spectra)

    def head_folder(self, choice: HeadChoice, point: Point) -> Path | None:
        """Return where a head is saved, under the id of its in-domain result; None for nowhere."""
        if self.plan.heads_folder is None:
            return None
        row_id = self.id(choice, point, self.evaluations[0])
        return self.plan.heads_folder / f"{choice.plugin.name}-{row_id}"

    def unsaved(self, choice: HeadChoice, point: Point) -> bool:
        """Whether what is fitted is to be saved, and was not."""
        folder = self.head_folder(choice, point)
        return folder is not None and not is_saved(folder)

    def _features(self, evaluation: Evaluation) -> Features:
        name = f"{self.task.name} test" if evaluation.domain == "id" else evaluation.name
        return feature_pass(self.plan.store, self.encoder, evaluation.samples, dataset=name)

    def _training_data(self) -> tuple[TrainingData, str]:
        task, plan = self.task, self.plan
        views = [
            feature_pass(plan.store, self.encoder, task.train, dataset=f"{task.name} train", view=view)
            for view in range(plan.views + 1)
        ]
        held = None
        if task.validation is not None:
            held = feature_pass(plan.store, self.encoder, task.validation, dataset=f"{task.name} validation")
        data = TrainingData(
            keys=task.train.keys,
            features=views[0].array if len(views) == 1 else np.concatenate([view.array for view in views]),
            labels=task.train.labels,
            validation_keys=None if task.validation is None else task.validation.keys,
            validation_features=None if held is None else held.array,
            validation_labels=None if task.validation is None else task.validation.labels,
            carving=self.carving,
            num_classes=task.outputs,
            class_embeddings=self.encoder.class_embeddings(task.classes) if self._texts else None,  # type: ignore[attr-defined]
        )
        return data, views[0].key

    @functools.cached_property
    def _texts(self) -> dict[str, Any] | None:
        return texts_of(self.plan.heads, self.encoder, self.task.classes)

    def identities(self) -> Iterator[dict[str, Any]]:
        """Yield what identifies each row asked for."""
        for choice, point, evaluation in itertools.product(
            self.plan.heads, self.plan.points(), self.evaluations
        ):
            yield self.identity(choice, point, evaluation)

    def identity(self, choice: HeadChoice, point: Point, evaluation: Evaluation) -> dict[str, Any]:
        """Return what identifies the row of a test set."""
        return {
            "encoder_hash": self.encoder.info.hash,
            "task": self.task.name,
            "task_revision": self.task.revision,
            "split_hash": self.task.split_hash,
            "domain": evaluation.domain,
            "dataset": evaluation.name,
            "head": choice.plugin.name,
            "head_distribution": choice.plugin.distribution,
            "head_version": choice.plugin.version,
            "head_code": choice.code,
            "study": study_of(choice, self.carving, self.plan.views, point.noise, point.model, self._texts),
            "fraction": float(point.fraction),
            "seed": point.seed,
            "downstream_noise": float(point.noise),
            "svd_convention": self.plan.convention,
        }

    def id(self, choice: HeadChoice, point: Point, evaluation: Evaluation) -> str:
        """Return the id of the row of a test set."""
        return identify(**self.identity(choice, point, evaluation))


def _told(noise: Fraction, model: str) -> str:
    name = "" if model == SYMMETRIC else f"{model.partition(':')[0]} "
    return f"{100 * float(noise):g} % {name}downstream noise"
