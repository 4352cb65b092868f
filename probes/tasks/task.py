"""What a task is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from nml.labels import Target
from probes.hashing import hash_keys, hash_value
from probes.results.row import Domain
from probes.samples import Modality, SampleSet
from probes.spec import Spec

Metric = Literal["accuracy", "mean_per_class", "macro_f1", "matthews", "f1", "pearson", "spearman", "map"]
"""Measures that a task may name as its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What is known of a task before any of its data is read.

    Attributes:
        name: Registered name.
        modality: What its samples are.
        num_classes: Classes; 0 where the user's data decides.
        target: What its labels are.
        metric: The metric its field reports; of classes accuracy and macro F1 are always computed.
        splits: Samples in each split as published, for example ``{"train": 50000, "test": 10000}``.
        ood: Names of the variants that count as out-of-domain.
        source: Where the data comes from.
        revision: Exact revision of the source, or the rule that pins it.
        licence: Licence note.
        disk: What preparing it takes on disk, for example ``"0.4 GB"``; empty where nothing is fetched.
        checked: What of this record was compared with a source, and what could not be.
        note: What a user must know: dead links, duplicates, class masking.
    """

    name: str
    modality: Modality
    num_classes: int
    target: Target = "classification"
    metric: Metric = "accuracy"
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ood: tuple[str, ...] = ()
    source: str
    revision: str
    licence: str
    disk: str = ""
    checked: str = ""
    note: str = ""

    @property
    def published(self) -> bool:
        """Whether its data are given; otherwise they are whatever the user names."""
        return self.num_classes > 0 or self.target == "regression"


class Perturbations(NamedTuple):
    """Frames of videos that should be classified alike: an anchor and its neighbours (arXiv 1906.02168).

    Attributes:
        metric: Name of the accuracy of whole sets in results, for example ``pm-10``.
        sets: Positions of the frames of each set among the samples, the anchor first.
        accepted: For each of the N samples, the labels that count as right.
    """

    metric: str
    sets: tuple[tuple[int, ...], ...]
    accepted: tuple[frozenset[int], ...]


class Evaluation(NamedTuple):
    """Test data that a head is scored on. It never chooses anything.

    Attributes:
        name: Name in results, for example ``digits-inverted``.
        domain: ``id`` or ``ood``.
        samples: The samples.
        classes: The classes that can occur, where they are a part of the task's (ImageNet-A, -R);
            the logits of all others are masked. None for all.
        groups: Classes of the task that make up each class of the test data, where those are coarser
            (ObjectNet, ImageNet-Vid-Robust); labels then number the groups, and a group's logit is the
            largest of its members. None where the classes are the task's.
        perturbations: Sets of samples that are scored together; None where each stands for itself.
    """

    name: str
    domain: Domain
    samples: SampleSet
    classes: tuple[int, ...] | None = None
    groups: tuple[tuple[int, ...], ...] | None = None
    perturbations: Perturbations | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Data to probe on.

    Attributes:
        name: Name in results.
        modality: What the samples are.
        classes: Names of the K classes; empty where numbers are predicted.
        target: What the labels are: see ``SampleSet.labels``.
        metric: The metric its field reports.
        revision: Revision of the data.
        train: Training samples.
        validation: Published validation samples; None if they are to be carved from ``train``.
        evaluations: Test sets, in-domain first.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...]
    target: Target = "classification"
    metric: Metric = "accuracy"
    revision: str
    train: SampleSet
    validation: SampleSet | None
    evaluations: tuple[Evaluation, ...]

    @property
    def outputs(self) -> int:
        """How many scores a head gives a sample: K, or one number."""
        return 1 if self.target == "regression" else len(self.classes)

    @functools.cached_property
    def split_hash(self) -> str:
        """Hash of the sample keys of every split, in order."""
        parts = {"train": hash_keys(self.train.keys)}
        if self.validation is not None:
            parts["validation"] = hash_keys(self.validation.keys)
        for evaluation in self.evaluations:
            parts[f"test:{evaluation.name}"] = hash_keys(evaluation.samples.keys)
        return hash_value(parts)


class TaskSource(Protocol):
    """What an entry point of the group ``nml.tasks`` names.

    Attributes:
        record: What is known of the task before its data is read.
    """

    @property
    def record(self) -> TaskRecord:
        """What is known of the task before its data is read."""
        ...

    def open(self, spec: Spec, root: Path) -> Task:
        """Return the task.

        Args:
            spec: What the user typed.
            root: Folder of prepared tasks.

        Raises:
            UserError: If the data is missing or damaged; one line with the mend.
        """
        ...


@runtime_checkable
class ChecksSpec(Protocol):
    """A task source that can tell a mistake in what a user typed before its data is there."""

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant; :meth:`TaskSource.open` refuses them, too.

        Raises:
            UserError: Naming the option, and what is possible.
        """
        ...
