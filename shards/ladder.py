"""A ladder of noise levels over one set: what may be asked, what was realised, and which samples changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from nml.errors import UserError
from nml.levels import CLEAN_LEVEL, OWN_RATE, check_level_name, decimal_text, level_name
from shards.noise import NOISE_MODELS, Flips, Integers, Kind, NoiseModel, Population, exact_count

DEFAULT_MODEL: dict[Kind, str] = {
    "class": "symmetric",
    "caption": "caption-swap",
    "captions": "caption-swap",
}
MISSES_ITS_RATIO = "paper-released"
"""The one model that is not held to its ratio: what it misses is what it is there to show."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One noise level of a set.

    Attributes:
        name: ``n20``, or as its user named it; ``n00`` is clean.
        asked: The ratio a user asked for, as decimal text.
        realised: Share of samples whose supervision differs from the clean one.
        model: The noise model, or ``clean``.
        flipped: Samples whose supervision differs from the clean one.
        column: Column of the manifest and the index that holds this level's supervision.
        seed: Seed of the plan.
        moved: Captions only: samples that carry another sample's caption, equal text or not.
        model_input: What the model read besides the supervision: ``file_sha256``, and for computed
            features the encoder, its weights' hash and its preprocessing.
    """

    name: str
    asked: str
    realised: float
    model: str
    flipped: int
    column: str
    seed: int = 0
    moved: int | None = None
    model_input: dict[str, Any] | None = None

    def describe(self) -> str:
        """Return the line a user reads: asked and realised rate, and the count."""
        moved = "" if self.moved is None else f", moved {self.moved:,}, text_changed {self.flipped:,}"
        rate = f"asked {self.asked}, realised {self.realised:.6g}"
        what = "label" if self.moved is None else "caption"
        nothing = "" if self.flipped or self.model == "clean" else f"; no {what} is altered"
        return f"{self.name}: {rate} ({self.model}, {self.flipped:,} flipped{moved}){nothing}"

    def draw(self) -> tuple[Any, ...]:
        """Return what decides whose supervision is altered, and to what: model, ratio, seed and input."""
        return self.model, self.asked, self.seed, self.model_input

    def as_json(self) -> dict[str, Any]:
        """Return the record that set.json stores, without the name."""
        return {name: value for name, value in asdict(self).items() if name != "name" and value is not None}


class PlannedLevel(NamedTuple):
    """A level and the samples it alters."""

    level: Level
    flips: Flips


def altered_kind(kind: Kind) -> Kind:
    """Return what a noise model alters in samples of a kind: of several captions, each is one."""
    return "caption" if kind == "captions" else kind


def clean_column(kind: Kind) -> str:
    """Return the column of clean supervision: ``label`` or ``caption``."""
    return "label" if kind == "class" else "caption"


def level_column(kind: Kind, name: str) -> str:
    """Return the column of a level's supervision: ``label_n20``; the clean one for ``n00``."""
    return clean_column(kind) if name == CLEAN_LEVEL else f"{clean_column(kind)}_{name}"


def clean_level(kind: Kind) -> Level:
    """Return the level that every set has."""
    return Level(
        name=CLEAN_LEVEL, asked="0", realised=0.0, model="clean", flipped=0, column=clean_column(kind)
    )


def load_model(name: str | None, kind: Kind, model_file: str | None) -> tuple[str, NoiseModel]:
    """Return the noise model a user named, or the default one for ``kind``, with its name.

    Raises:
        UserError: If it is unknown, cannot be made, or alters the other kind of supervision.
    """
    name = name or DEFAULT_MODEL[kind]
    make = NOISE_MODELS.load(name)
    with NOISE_MODELS.blaming(name):
        model: NoiseModel = make(model_file)
        # Asked here, so that one that does not say them is told before anything is read.
        _ = model.kind, model.nested, model.own_ratio
    if model.kind != altered_kind(kind):
        raise UserError(
            f"--model {name}: alters a {model.kind}, and this source has a {altered_kind(kind)} a sample",
            mend=f"use --model {DEFAULT_MODEL[kind]}, or a source with a {model.kind} a sample",
        )
    return name, model


def plan_ladder(
    model: NoiseModel,
    name: str,
    population: Population,
    ratios: Sequence[Fraction],
    seed: int,
    model_input: dict[str, Any] | None = None,
    names: Sequence[str] = (),
) -> list[PlannedLevel]:
    """Plan every ratio above 0, in the order asked.

    Args:
        model: The noise model.
        name: Its name.
        population: The samples.
        ratios: What was asked for.
        seed: Seed of the noise.
        model_input: Recorded in each level.
        names: Names of the levels, one each; where there are none, the ratios name them.

    Raises:
        UserError: If the model cannot realise a ratio on this population or breaks the contract, or two
            ratios share a name.
    """
    noisy = [ratio for ratio in ratios if ratio]
    planned = plan(model, name, population, noisy, seed) if noisy or model.own_ratio else []
    if names and len(names) != len(planned):
        raise UserError(
            f"--name: {len(names)} names for {len(planned)} levels", mend="give each level above 0 one name"
        )
    levels = []
    for position, flips in enumerate(planned):
        if model.own_ratio and not len(flips.rows):
            raise UserError(
                f"--model {name}: every label of the file is the clean one: there is no noise to add",
                mend="name a file of other labels of these samples",
            )
        asked = noisy[position] if noisy else level_ratio_of(flips, population)
        called = check_level_name(names[position], asked) if names else level_name(asked)
        level = _describe(called, name, population, asked, flips, seed)
        levels.append(PlannedLevel(replace(level, model_input=model_input), flips))
    return levels


def with_own_rate(
    ratios: Sequence[Fraction], model: NoiseModel, name: str, population: Population
) -> tuple[Fraction, ...]:
    """Return the ratios asked for, and the model's own.

    Raises:
        UserError: If the model has none, or it is asked for already.
    """
    if model.own_ratio:
        return tuple(ratios)
    own_rate = getattr(model, "own_rate", None)
    if own_rate is None:
        raise UserError(
            f"--noise {OWN_RATE}: the {name} model has no rate of its own", mend="name a ratio: --noise 0.2"
        )
    asked = (*ratios, own_rate(population))
    check_ratios(asked)
    return asked


def level_ratio_of(flips: Flips, population: Population) -> Fraction:
    """Return the ratio that names labels from a file: the realised one to four decimals, never 0."""
    realised = len(flips.rows) / max(len(population), 1)
    return Fraction(f"{realised:.4f}") or Fraction(f"{realised:.1g}")


def _describe(
    called: str, model: str, population: Population, asked: Fraction, flips: Flips, seed: int
) -> Level:
    flipped, moved = len(flips.rows), None
    if population.kind == "caption":
        moved = int(np.count_nonzero(flips.rows != flips.values))
        flipped = int(np.count_nonzero(population.texts[flips.rows] != population.texts[flips.values]))
    return Level(
        name=called,
        asked=decimal_text(asked),
        realised=flipped / max(len(population), 1),
        model=model,
        flipped=flipped,
        column=level_column(population.kind, called),
        seed=seed,
        moved=moved,
    )


def plan(
    model: NoiseModel, name: str, population: Population, ratios: Sequence[Fraction], seed: int
) -> list[Flips]:
    """Return what a model plans, held to what a plan promises: a third party's bug must not reach a label.

    Raises:
        UserError: If the model cannot realise a ratio, raises, or breaks a promise.
    """
    with NOISE_MODELS.blaming(name):
        planned = [Flips(*map(np.asarray, level)) for level in model.plan(population, ratios, seed)]
        if len(planned) != (len(ratios) or 1):
            raise ValueError(f"planned {len(planned)} levels of {len(ratios) or 1}")
        for flips in planned:
            _check(population, flips)
        if name != MISSES_ITS_RATIO and not model.own_ratio:
            for ratio, flips in zip(ratios, planned, strict=True):
                count = exact_count(ratio, len(population))
                if len(flips.rows) != count:
                    raise ValueError(
                        f"alters {len(flips.rows)} samples at {decimal_text(ratio)}, not {count}"
                    )
    return planned


def _check(population: Population, flips: Flips) -> None:
    rows, values = flips
    if {rows.dtype.kind, values.dtype.kind} != {"i"}:
        raise ValueError(f"plans rows of {rows.dtype} and values of {values.dtype}, not int64")
    bound = population.num_classes if population.kind == "class" else len(population)
    if len(rows) != len(values) or len(np.unique(rows)) != len(rows):
        raise ValueError("plans a sample twice, or without a value")
    for what, numbers, end in (("sample", rows, len(population)), ("value", values, bound)):
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < end):
            raise ValueError(f"plans a {what} outside 0..{end - 1}")
    if population.kind == "class" and np.any(population.labels[rows] == values):
        raise ValueError("flips a label to itself")


def apply_flips(clean: Integers, flips: Flips) -> Integers:
    """Return the supervision of a level: for classes the labels, for captions whose caption each gets."""
    noisy = clean.copy()
    noisy[flips.rows] = flips.values
    return noisy


def check_ratios(ratios: Sequence[Fraction], names: Sequence[str] = ()) -> None:
    """Raise a UserError if two of the ratios asked for, or of the levels' names, are the same."""
    asked = [decimal_text(ratio) for ratio in ratios]
    for flag, values in (("--noise", asked), ("--name", names)):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"{flag}: {twice[0]} is asked for twice", mend="name each level once")
    if clean := [name for name in names if name.lower() == "clean"]:
        raise UserError(
            f"--name {clean[0]}: a level that is not clean would be called so",
            mend=f"choose another name; the clean labels are {CLEAN_LEVEL} in every set",
        )


class Noisable(Protocol):
    """Samples that noise may be asked for: a source, or a finished set."""

    @property
    def held_out(self) -> bool:
        """Whether they are a validation or test split."""
        ...

    @property
    def parent(self) -> dict[str, str] | None:
        """Fingerprint and level of the set they came from, if they came from one."""
        ...


def refuse_noise(samples: Noisable, shown: str, *, chain: bool, force: bool) -> None:
    """Raise a UserError if noise would touch a held-out split, or samples that are noisy already.

    Args:
        samples: What noise is asked for.
        shown: What a message calls them.
        chain: Whether noise on top of noise was asked for.
        force: Whether noise on a held-out split was asked for.
    """
    if samples.held_out and not force:
        raise UserError(
            f"{shown}: is a validation or test split, which noise must not touch",
            mend="use --noise 0, the training split, or --force if the name misleads",
        )
    if samples.parent and samples.parent["level"] != CLEAN_LEVEL and not chain:
        raise UserError(
            f"{shown}: its labels are already noisy ({samples.parent['level']})",
            mend="add a level to the set they came from with python -m shards.relabel, or noise on top with "
            "--chain, which set.json records",
        )
