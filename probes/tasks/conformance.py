"""What a task promises, as small named checks on its data.

A check that fails says what was promised and what was seen; ``python -m probes.tasks check NAME`` runs all of
them. :mod:`nml.conformance` says how they run as tests of another package.
"""

from __future__ import annotations

import functools
import itertools
import json
import unittest
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from nml.conformance import (
    CheckFailed,
    address,
    checks_of,
    found_at,
    in_another_process,
    promise,
    refused,
    untouched_randomness,
)
from nml.errors import UserError
from nml.randomness import scrambled_randomness
from nml.untrusted import parse_json
from probes.samples import Content, SampleSet
from probes.spec import split_spec
from probes.tasks.overlap import shared_samples
from probes.tasks.registry import DEFAULT_ROOT, check_task
from probes.tasks.task import Task, TaskRecord, TaskSource

# Samples of a split that are read where reading all would take long.
READ = 32


class Subject:
    """A task under check.

    Args:
        source: What its entry point names.
        text: What a user types for it.
        root: Folder of prepared tasks.
    """

    def __init__(self, source: TaskSource, text: str, root: Path = DEFAULT_ROOT) -> None:
        self.source = source
        self.text = text
        self.root = root

    def open(self, more: str = "") -> Task:
        """Return the task, opened anew; ``more`` is added to what the user typed."""
        return self.source.open(split_spec(self.text + more), self.root)

    @functools.cached_property
    def task(self) -> Task:
        """The task as it was when it was first opened."""
        return self.open()


def splits(task: Task) -> Iterator[tuple[str, SampleSet]]:
    """Yield every split of a task with its name."""
    yield "train", task.train
    if task.validation is not None:
        yield "validation", task.validation
    for evaluation in task.evaluations:
        yield evaluation.name, evaluation.samples


def readable(subject: Subject) -> Task:
    """Return the task; a check of its samples does not apply where there are labels alone."""
    if subject.task.modality == "features":
        raise unittest.SkipTest("labels alone: there are no samples to read")
    return subject.task


def the_record_is_true(subject: Subject) -> None:
    """Modality, target, number of classes, metric and split sizes are those that the record says."""
    record, task = subject.source.record, subject.task
    promise(isinstance(record, TaskRecord), f"record is {type(record).__name__}, no TaskRecord")
    found = {
        "modality": task.modality,
        "target": task.target,
        "classes": len(task.classes),
        "metric": task.metric,
        "training samples": len(task.train.keys),
        "test samples": len(task.evaluations[0].samples.keys) if task.evaluations else 0,
    }
    said = {
        "modality": record.modality,
        "target": record.target,
        "classes": record.num_classes or found["classes"],
        "metric": record.metric,
        "training samples": record.splits.get("train", found["training samples"]),
        "test samples": record.splits.get("test", found["test samples"]),
    }
    # A record of data that a user brings cannot know what they are.
    if not record.published:
        said |= {name: found[name] for name in ("modality", "target", "metric")}
    for what, value in found.items():
        promise(value == said[what], f"{what}: {value}, the record says {said[what]}")


def samples_are_aligned(subject: Subject) -> None:
    """Keys are texts, and labels as the target says, as many of each; the fingerprint is a text."""
    task = subject.task
    columns = len(task.classes)
    shapes = {
        "classification": "int64 [{}]",
        "multilabel": f"bool [{{}}, {columns}]",
        "regression": "float64 [{}]",
    }
    for name, samples in splits(task):
        labels = samples.labels
        shown = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else repr(labels)
        promise(shown == shapes[task.target].format(len(samples.keys)), f"{name}: labels are {shown}")
        promise(all(isinstance(key, str) for key in samples.keys), f"{name}: a key is no text")
        promise(isinstance(samples.fingerprint, str), f"{name}: the fingerprint is no text")


def it_can_be_learnt_and_scored(subject: Subject) -> None:
    """Labels are in the range of the classes, all occur in training, keys are unique in a split."""
    try:
        check_task(subject.task)
    except UserError as error:
        raise CheckFailed(str(error)) from error


def it_is_tested_in_domain_first(subject: Subject) -> None:
    """The first evaluation is in-domain: heads are compared on it, and shifts are made of it."""
    domains = [evaluation.domain for evaluation in subject.task.evaluations]
    promise(domains[:1] == ["id"], f"domains of the evaluations, in order: {', '.join(domains) or 'none'}")


def splits_are_disjoint(subject: Subject) -> None:
    """No sample of the training or validation data is in a test set, by its bytes."""
    shared = shared_samples(readable(subject))
    promise(not shared, "; ".join(shared[:2]))


def opening_again_gives_the_same(subject: Subject) -> None:
    """Classes, keys, labels and fingerprints stay: results and features of today are found by them."""
    with scrambled_randomness():
        again = subject.open()
    _same(_identity(subject.task), _identity(again), "a second time")


def another_process_opens_the_same(subject: Subject) -> None:
    """Nothing depends on the process: the order of a set of texts differs in each."""
    there = in_another_process(_identity_there, address(subject.source), subject.text, str(subject.root))
    _same(_identity(subject.task), parse_json(there), "in another process")


def reading_gives_the_same(subject: Subject) -> None:
    """A sample is the same whenever, after whatever and by whichever thread it is read."""
    for name, samples in splits(readable(subject)):
        rows = range(min(READ, len(samples.keys)))
        first = [_plain(samples.read(row)) for row in rows]
        with ThreadPoolExecutor(max_workers=4) as pool, scrambled_randomness():
            again = list(pool.map(lambda row, of=samples: _plain(of.read(row)), reversed(rows)))
        promise(first == again[::-1], f"{name}: samples that are read in another order are others")


def samples_are_of_the_modality(subject: Subject) -> None:
    """What is read is an image, or a text or texts, as the task says."""
    expected = Image.Image if subject.task.modality == "image" else (str, tuple)
    for name, samples in splits(readable(subject)):
        content = samples.read(0)
        promise(isinstance(content, expected), f"{name}: reads {type(content).__name__}")


def fingerprints_tell_samples_apart(subject: Subject) -> None:
    """Splits of other samples have other fingerprints: features are stored by them."""
    for (one, first), (two, second) in itertools.combinations(splits(readable(subject)), 2):
        rows = range(min(READ, len(first.keys), len(second.keys)))
        if any(_plain(first.read(row)) != _plain(second.read(row)) for row in rows):
            alike = first.fingerprint == second.fingerprint
            promise(not alike, f"{one} and {two} differ, and their fingerprints do not")


def leaves_global_randomness_alone(subject: Subject) -> None:
    """Opening and reading leave the random generators of torch, numpy and Python as they were."""
    readable(subject)
    with untouched_randomness("opening or reading"):
        for _, samples in splits(subject.open()):
            samples.read(0)


def refuses_an_unknown_option(subject: Subject) -> None:
    """An option that the task does not have is refused in one line, not passed over."""
    separator = "," if ":" in subject.text else ":"
    refused(lambda: subject.open(f"{separator}no_such_option=1"), "no_such_option=1")


CHECKS = checks_of(__name__)


def _identity(task: Task) -> dict[str, object]:
    """Return what results and features are found by, JSON-like."""
    found: dict[str, object] = {
        "name": task.name,
        "revision": task.revision,
        "classes": list(task.classes),
        "keys of the splits": task.split_hash,
    }
    for name, samples in splits(task):
        found[f"fingerprint of {name}"] = samples.fingerprint
        found[f"labels of {name}"] = samples.labels.tolist()
    return found


def _identity_there(source: str, text: str, root: str) -> str:
    return json.dumps(_identity(Subject(found_at(source), text, Path(root)).task))


def _same(before: Mapping[str, object], after: Mapping[str, object], when: str) -> None:
    promise(before.keys() == after.keys(), f"opened {when}, it has other splits")
    for what, value in before.items():
        promise(after[what] == value, f"opened {when}, it has other {what}")


def _plain(content: Content) -> object:
    if isinstance(content, Image.Image):
        return content.mode, content.size, content.tobytes()
    return content
