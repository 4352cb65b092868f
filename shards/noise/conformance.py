"""What a noise model promises, as small named checks on a small population.

A check that fails says what was promised and what was seen; ``python -m shards.noise check NAME`` runs all of
them. :mod:`nml.conformance` says how they run as tests of another package.
"""

from __future__ import annotations

import functools
import hashlib
import unittest
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nml.conformance import (
    address,
    checks_of,
    files_opened,
    found_at,
    in_another_process,
    promise,
    untouched_randomness,
)
from nml.randomness import scrambled_randomness
from nml.sources import Kind
from shards.hashing import hash_keys
from shards.noise import Flips, NoiseModel, Population, exact_count

SAMPLES = 600
CLASSES = 5
# Out of order; 600 * 0.41 is 246, and 245.99999999999997 in floating point. Counts are even, since an odd
# number of captions cannot be swapped in pairs.
RATIOS = (Fraction(1, 10), Fraction(1, 20), Fraction(41, 100))

Altered = dict[str, str | int]
"""The class, or the key of the sample whose caption it gets, of every altered key."""


def population(kind: Kind, order: Sequence[int] | None = None) -> Population:
    """Return the samples that models are checked on: some classes, or texts, are more frequent than others.

    Args:
        kind: Whether they have classes or captions.
        order: The order they come in, a permutation of 600; by default that of the source.
    """
    rows = np.arange(SAMPLES) if order is None else np.asarray(order)
    keys = [f"sample-{number:03d}" for number in rows]
    classes = kind == "class"
    return Population(
        kind=kind,
        hashes=hash_keys(keys),
        # Sizes of 40, 80, ... 200.
        labels=np.minimum((np.sqrt(8 * (rows % 15) + 1).astype(np.int64) - 1) // 2, 4)
        if classes
        else np.empty(0, np.int64),
        num_classes=CLASSES if classes else 0,
        texts=np.empty(0, np.uint64) if classes else hash_keys(f"text {row % 550}" for row in rows),
        keys=keys,
        source_rows=None if order is None else rows,
    )


class Subject:
    """A noise model under check.

    Args:
        model: The class.
        model_file: The file it is given, for the population of :func:`population`; None for none.
    """

    def __init__(self, model: Callable[..., NoiseModel], model_file: str | None = None) -> None:
        self.model = model
        self.model_file = model_file

    def make(self) -> NoiseModel:
        """Return a model, fresh."""
        return self.model(self.model_file)

    @functools.cached_property
    def kind(self) -> Kind:
        """What it alters."""
        return self.make().kind

    @functools.cached_property
    def ratios(self) -> tuple[Fraction, ...]:
        """The ratios to ask for: none of a model that decides its own."""
        return () if self.make().own_ratio else RATIOS

    def plan(
        self, ratios: Sequence[Fraction] | None = None, *, seed: int = 0, people: Population | None = None
    ) -> list[Flips]:
        """Return what a fresh model plans; of the usual population and ratios unless others are given."""
        return self.make().plan(
            people or population(self.kind), self.ratios if ratios is None else ratios, seed
        )

    def altered(self, flips: Flips, people: Population | None = None) -> Altered:
        """Return what flips do to each key, in the order of the keys."""
        people = people or population(self.kind)
        keys = list(people.keys)
        values: list[Any] = flips.values.tolist()
        if self.kind == "caption":
            values = [keys[value] for value in values]
        return dict(sorted(zip((keys[row] for row in flips.rows.tolist()), values, strict=True)))


def has_the_contract(subject: Subject) -> None:
    """Kind, ``nested`` and ``own_ratio`` are said, and a plan is one ``Flips`` of whole numbers a ratio."""
    model = subject.make()
    promise(model.kind in get_args(Kind), f"kind is {model.kind!r}; possible: {', '.join(get_args(Kind))}")
    for name in ("nested", "own_ratio"):
        promise(
            isinstance(getattr(model, name), bool), f"{name} is {getattr(model, name)!r}, not True or False"
        )
    planned = subject.plan()
    expected = len(subject.ratios) or 1
    promise(len(planned) == expected, f"plan returned {len(planned)} levels; expected {expected}")
    for flips in planned:
        kinds = [np.asarray(part).dtype.kind for part in flips]
        promise(set(kinds) <= {"i"}, f"rows and values are of kinds {kinds}; expected int64")


def alters_exactly_as_many_as_asked(subject: Subject) -> None:
    """Each level alters round(r N) samples, by exact arithmetic, in the order of the ratios."""
    if not subject.ratios:
        raise unittest.SkipTest("the class says own_ratio = True")
    for ratio, flips in zip(RATIOS, subject.plan(), strict=True):
        count = exact_count(ratio, SAMPLES)
        promise(
            len(flips.rows) == count, f"{float(ratio):g} of {SAMPLES} alters {len(flips.rows)}, not {count}"
        )


def alters_no_sample_twice(subject: Subject) -> None:
    """A level names each sample once, and a value for each."""
    for rows, values in subject.plan():
        promise(len(rows) == len(values), f"{len(rows)} rows and {len(values)} values")
        promise(len(np.unique(rows)) == len(rows), f"of {len(rows)} rows, {len(np.unique(rows))} differ")
        inside = not len(rows) or (rows.min() >= 0 and rows.max() < SAMPLES)
        promise(inside, f"rows outside 0..{SAMPLES - 1}")


def values_exist(subject: Subject) -> None:
    """Each value is a class of the set, or a sample whose caption it gets."""
    bound = CLASSES if subject.kind == "class" else SAMPLES
    for _, values in subject.plan():
        inside = not len(values) or (values.min() >= 0 and values.max() < bound)
        promise(inside, f"values {values.min()} to {values.max()}; possible: 0 to {bound - 1}")


def never_gives_back_the_clean_value(subject: Subject) -> None:
    """What is altered differs from the clean class; no sample gets its own caption."""
    people = population(subject.kind)
    clean = people.labels if subject.kind == "class" else np.arange(SAMPLES)
    for rows, values in subject.plan():
        same = int(np.count_nonzero(clean[rows] == values))
        promise(not same, f"{same} of {len(rows)} altered samples keep their own")


def levels_are_nested(subject: Subject) -> None:
    """What a lower level alters, a higher one alters alike."""
    if not subject.make().nested or not subject.ratios:
        raise unittest.SkipTest("the class says nested = False, or has one level")
    levels = [subject.altered(flips) for flips in subject.plan()]
    for lower, higher in zip(sorted(levels, key=len), sorted(levels, key=len)[1:], strict=False):
        lost = [key for key, value in lower.items() if higher.get(key) != value]
        promise(not lost, f"{len(lost)} of {len(lower)} samples are not altered alike by the next level")


def a_level_stands_alone(subject: Subject) -> None:
    """A level does not depend on what else is asked for, or one added later would not be nested."""
    if not subject.ratios:
        raise unittest.SkipTest("the class says own_ratio = True")
    for ratio, flips in zip(RATIOS, subject.plan(), strict=True):
        (alone,) = subject.plan([ratio])
        promise(
            subject.altered(alone) == subject.altered(flips),
            f"{float(ratio):g} asked for alone is another plan than among others",
        )


def the_seed_decides(subject: Subject) -> None:
    """A seed gives one plan, whatever the global random generators stand at; another seed gives another."""
    first = list(map(subject.altered, subject.plan()))
    with scrambled_randomness():
        again = list(map(subject.altered, subject.plan()))
    promise(first == again, "a second plan with seed 0 differs from the first")
    other = list(map(subject.altered, subject.plan(seed=1)))
    promise(first != other or not subject.ratios, "seed 1 gives the plan of seed 0")


def the_order_of_samples_is_nothing(subject: Subject) -> None:
    """Samples that come in another order are altered alike, key by key."""
    people = population(subject.kind, np.random.default_rng(0).permutation(SAMPLES).tolist())
    turned = [subject.altered(flips, people) for flips in subject.plan(people=people)]
    promise(
        turned == list(map(subject.altered, subject.plan())), "another order of the samples, another plan"
    )


def another_process_plans_the_same(subject: Subject) -> None:
    """The plan does not depend on the process: Python's own ``hash`` of a text differs in each."""
    model = address(subject.model)
    there = in_another_process(_digest_there, model, *filter(None, [subject.model_file]))
    promise(there == _digest(subject), "another process makes another plan")


def leaves_global_randomness_alone(subject: Subject) -> None:
    """Making a model and planning leave the random generators of torch, numpy and Python as they were."""
    with untouched_randomness("the plan"):
        subject.plan()


def leaves_the_samples_alone(subject: Subject) -> None:
    """The population is read, never written."""
    people, untouched = population(subject.kind), population(subject.kind)
    subject.plan(people=people)
    for name in ("hashes", "labels", "texts"):
        same = np.array_equal(getattr(people, name), getattr(untouched, name))
        promise(same, f"the plan changed the population's {name}")


def reads_the_model_file_alone(subject: Subject) -> None:
    """No other file decides: ``set.json`` records the hash of what ``--model-file`` names alone."""
    subject.plan()  # what is imported on the way is read now
    with files_opened() as opened:
        subject.plan()
    allowed = {str(Path(subject.model_file).absolute())} if subject.model_file else set()
    others = sorted({str(Path(file).absolute()) for file in opened} - allowed)
    promise(not others, f"reads {', '.join(others[:3])}, which no set would record")


CHECKS = checks_of(__name__)


def _digest(subject: Subject) -> str:
    levels = [list(subject.altered(flips).items()) for flips in subject.plan()]
    return hashlib.sha256(repr(levels).encode()).hexdigest()


def _digest_there(model: str, model_file: str | None = None) -> str:
    return _digest(Subject(found_at(model), model_file))
