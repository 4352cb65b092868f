"""What a noise model is: from clean supervision, ratios and a seed to the exact samples it alters.

A plan is a pure function of (keys, supervision, model, ratios, seed). It does not depend on the
order samples come in, on the number of workers or on the machine. Models register under the entry
point group ``nml.noise``; a third party's is chosen with ``--model NAME`` like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.registry import Registry
from nml.sources import Kind
from shards.hashing import Hashes, mix

Integers = npt.NDArray[np.int64]
"""int64, of any shape."""

NOISE_MODELS = Registry(
    "nml.noise",
    kind="noise model",
    where="--model",
    listing="python -m shards.noise list",
    check="python -m shards.noise check",
)
"""The registered noise models."""


@dataclass(frozen=True, eq=False)
class Population:
    """The samples that a plan is made over, without their images.

    Attributes:
        kind: Whether supervision is a class label or a caption.
        hashes: Hash of each sample's key, uint64 [N], unique.
        labels: Clean class of each sample, int64 [N]; empty for captions.
        num_classes: K; 0 for captions.
        texts: Hash of each caption's text, uint64 [N]; empty for classes.
        keys: The keys themselves, for models that look samples up by name.
        names: What the source calls the samples, in the same order; empty where nothing tells.
        classes: Names of the classes in index order; None where they have none.
        source_rows: Place of each sample among the source's samples, a permutation int64 [N]; None
            if they come in the source's order.
        owners: The sample that each caption is of, where samples have several, int64 [N]: what is said
            here of samples is then said of captions. None where each has one.
        source_order_lost: Whether nothing tells those places, as in sets of versions that did not
            record them.
    """

    kind: Kind
    hashes: Hashes
    labels: Integers
    num_classes: int
    texts: Hashes
    keys: Iterable[str] = ()
    source_rows: Integers | None = None
    source_order_lost: bool = False
    names: Iterable[str] = ()
    classes: tuple[str, ...] | None = None
    owners: Integers | None = None

    def __len__(self) -> int:
        return len(self.hashes)

    def order(self, seed: int, purpose: str) -> Integers:
        """Return the samples in the order of their keyed hash, a permutation int64 [N]."""
        return np.argsort(mix(self.hashes, seed, purpose), kind="stable")

    def from_source_order(self, values: npt.NDArray[Any], file: Path, mend: str) -> npt.NDArray[Any]:
        """Return what a file without keys holds, a row a sample in the source's order, in the order here.

        Args:
            values: What the file holds, [N, ...].
            file: The file, for the message.
            mend: Which file with keys would do.

        Raises:
            UserError: If nothing tells which row is whose: a guess would alter other images.
        """
        if self.source_order_lost:
            raise UserError(
                f"--model-file {file}: is in the order of the source, which this set does not record",
                mend=mend,
            )
        return values if self.source_rows is None else values[self.source_rows]

    @cached_property
    def class_sizes(self) -> Integers:
        """Samples a class, int64 [K]."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)


class Flips(NamedTuple):
    """The samples that one level alters, and to what.

    Attributes:
        rows: Altered samples, int64 [k], each once.
        values: What each gets: the wrong class, or the sample whose caption it gets, int64 [k].
    """

    rows: Integers
    values: Integers


class NoiseModel(Protocol):
    """A noise model. Its constructor takes one optional argument: the file named by ``--model-file``.

    Attributes:
        kind: The supervision it alters.
        nested: Whether a lower level's flips are among a higher level's, with the same wrong value.
        own_ratio: Whether the model decides the ratio, as labels from a file do. It is then planned
            even when no ratio above 0 was asked for, and returns one level.
    """

    kind: Kind
    nested: bool
    own_ratio: bool

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Return the flips of each ratio, in the order of ``ratios``."""
        ...


def exact_count(ratio: Fraction, samples: int) -> int:
    """Return round(ratio * samples) in exact arithmetic: 0.29 of 100 is 29."""
    return round(ratio * samples)


def refuse_model_file(name: str, model_file: str | None) -> None:
    """Raise a UserError if a model that takes no file was given one."""
    if model_file:
        raise UserError(f"--model-file {model_file}: the {name} model takes no file", mend="leave it out")
