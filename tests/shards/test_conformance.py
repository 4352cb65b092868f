"""The kits of noise models and sources: what is sound passes, one fault fails the check that names it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml.conformance import Outcome, outcomes
from nml.errors import UserError
from nml.sources import SOURCES, ByteRange, Example, Source, SourceSpec
from shards.hashing import hash_keys, mix
from shards.noise import NOISE_MODELS, Flips, Population
from shards.noise import conformance as noise
from shards.noise.__main__ import main as check_noise
from shards.noise.symmetric import Symmetric
from shards.sources import conformance as sources
from shards.sources.__main__ import main as check_source
from shards.sources.image_folder import ImageFolderSource


def failed(found: Iterable[Outcome]) -> list[str]:
    return [outcome.name for outcome in found if outcome.status == "FAIL"]


class Faulty(Symmetric):
    """Symmetric noise, of which ``change`` makes something else, level by level."""

    def change(self, flips: Flips, people: Population, seed: int, largest: int) -> Any: ...

    def plan(self, population: Population, ratios: Any, seed: int) -> list[Flips]:
        plans = super().plan(population, ratios, seed)
        largest = max((len(flips.rows) for flips in plans), default=0)
        return [self.change(flips, population, seed, largest) for flips in plans]


def noise_with(change: Callable[..., Any], **attributes: Any) -> type[Symmetric]:
    return type("Fault", (Faulty,), {"change": lambda self, *given: change(*given), **attributes})


class Unkeyed(Symmetric):
    """Python's own hash decides the class, which is another one in each process."""

    def plan(self, population: Population, ratios: Any, seed: int) -> list[Flips]:
        steps = np.array(
            [1 + hash(f"{seed}/{key}") % (population.num_classes - 1) for key in population.keys]
        )
        values = (population.labels + steps) % population.num_classes
        return [Flips(rows, values[rows]) for rows, _ in super().plan(population, ratios, seed)]


def truncated(flips: Flips, people: Population, *_: int) -> Flips:
    count = len(flips.rows)
    # What int(0.41 * 600) gives.
    return Flips(flips.rows[: count - (count == 246)], flips.values[: count - (count == 246)])


def by_place(flips: Flips, people: Population, seed: int, largest: int) -> Flips:
    rows = np.argsort(mix(hash_keys(map(str, range(len(people)))), seed, "place"))[: len(flips.rows)]
    return Flips(rows, (people.labels[rows] + 1) % people.num_classes)


def per_level(flips: Flips, people: Population, seed: int, largest: int) -> Flips:
    rows = people.order(seed, f"select {len(flips.rows)}")[: len(flips.rows)]
    return Flips(rows, (people.labels[rows] + 1) % people.num_classes)


def of_the_largest(flips: Flips, people: Population, seed: int, largest: int) -> Flips:
    rows = people.order(seed, f"select {largest}")[: len(flips.rows)]
    return Flips(rows, (people.labels[rows] + 1) % people.num_classes)


def drawn_twice(flips: Flips, people: Population, *_: int) -> Flips:
    return Flips(np.append(flips.rows[:-1], flips.rows[0]), np.append(flips.values[:-1], flips.values[0]))


def writes(flips: Flips, people: Population, *_: int) -> Flips:
    people.hashes[0] += np.uint64(1)
    return flips


def draws(flips: Flips, *_: Any) -> Flips:
    random.random()
    return flips


def reads(flips: Flips, *_: Any) -> Flips:
    Path(__file__).read_bytes()
    return flips


NOISE_FAULTS: dict[str, type[Any]] = {
    "has_the_contract": noise_with(lambda flips, *_: flips, nested="yes"),
    "alters_exactly_as_many_as_asked": noise_with(truncated),
    "alters_no_sample_twice": noise_with(drawn_twice),
    "values_exist": noise_with(lambda flips, *_: Flips(flips.rows, flips.values + 5)),
    "never_gives_back_the_clean_value": noise_with(
        lambda flips, people, *_: Flips(flips.rows, 0 * flips.values)
    ),
    "levels_are_nested": noise_with(per_level),
    "a_level_stands_alone": noise_with(of_the_largest),
    "the_seed_decides": noise_with(
        lambda flips, people, *_: Symmetric().plan(people, [_fraction(flips, people)], 0)[0]
    ),
    "the_order_of_samples_is_nothing": noise_with(by_place),
    "another_process_plans_the_same": Unkeyed,
    "leaves_global_randomness_alone": noise_with(draws),
    "leaves_the_samples_alone": noise_with(writes),
    "reads_the_model_file_alone": noise_with(reads),
}


def _fraction(flips: Flips, people: Population) -> Any:
    return Fraction(len(flips.rows), len(people))


def test_every_check_of_noise_has_a_fault_that_it_finds() -> None:
    assert NOISE_FAULTS.keys() == noise.CHECKS.keys()


@pytest.mark.parametrize("name", NOISE_FAULTS)
def test_a_fault_of_a_noise_model_fails_the_check_that_names_it_and_no_other(name: str) -> None:
    assert failed(outcomes(noise.CHECKS, noise.Subject(NOISE_FAULTS[name]))) == [name]


# What the built-in models break, and say so.
KNOWN = {"paper-released": ["alters_exactly_as_many_as_asked"]}


@pytest.mark.parametrize("name", NOISE_MODELS.names())
def test_every_built_in_noise_model_keeps_its_promises(tmp_path: Path, name: str) -> None:
    people = noise.population("class")
    draw = np.random.default_rng(0)
    file = None
    if name == "transition-matrix":
        file = tmp_path / "matrix.csv"
        matrix = draw.random((noise.CLASSES,) * 2) + 3 * np.eye(noise.CLASSES)
        np.savetxt(file, matrix / matrix.sum(axis=1, keepdims=True), delimiter=",", fmt="%.17g")
    elif name == "instance-dependent":
        file = tmp_path / "features.npy"
        np.save(file, draw.normal(size=(len(people), 8)))
    elif name == "from-file":
        file = tmp_path / "labels.csv"
        labels = np.where(draw.random(len(people)) < 0.2, 1, people.labels)
        file.write_text("".join(f"{key},{label}\n" for key, label in zip(people.keys, labels, strict=True)))
    found = failed(outcomes(noise.CHECKS, noise.Subject(NOISE_MODELS.load(name), file and str(file))))
    assert found == KNOWN.get(name, [])


class Folder:
    """A sound source: the files of a folder, sorted."""

    kind, classes, held_out, parent = "class", ("a", "b"), False, None

    def __init__(self, spec: SourceSpec) -> None:
        self.refuse(spec)
        self.root = Path(spec.argument)

    def refuse(self, spec: SourceSpec) -> None:
        spec.refuse_columns()

    def __iter__(self) -> Iterator[Example]:
        for number, path in enumerate(sorted(self.root.iterdir())):
            yield Example(path.name, number % 2, ByteRange(str(path), 0, path.stat().st_size))


class Unordered(Folder):
    """Takes its files from a set of texts, whose order is another one in each process."""

    def __iter__(self) -> Iterator[Example]:
        for name in {path.name for path in self.root.iterdir()}:
            path = self.root / name
            yield Example(name, 0, ByteRange(str(path), 0, path.stat().st_size))


def source_with(change: Callable[[int, Example], Example], **attributes: Any) -> type[Folder]:
    def examples(self: Any) -> Iterator[Example]:
        return (change(number, example) for number, example in enumerate(Folder.__iter__(self)))

    return type("Fault", (Folder,), {"__iter__": examples, **attributes})


def same(number: int, example: Example) -> Example:
    return example


def drawn(number: int, example: Example) -> Example:
    return example._replace(supervision=int(np.random.default_rng().integers(2)))


def touched(number: int, example: Example) -> Example:
    assert isinstance(example.image, ByteRange)
    os.utime(example.image.path)
    return example


def moved(number: int, example: Example) -> Example:
    np.random.random()
    return example


class Shared(Folder):
    """All of its kind read from one stream."""

    streams: dict[Path, Iterator[Example]] = {}  # noqa: RUF012 - the fault

    def __iter__(self) -> Iterator[Example]:
        stream = self.streams.setdefault(self.root, Folder.__iter__(self))
        yield from stream
        del self.streams[self.root]


SOURCE_FAULTS: dict[str, Any] = {
    "has_the_contract": source_with(same, held_out="no"),
    "samples_are_whole": source_with(lambda number, example: example._replace(image=b"no image")),
    "names_are_unique": source_with(lambda number, example: example._replace(name=f"{number % 4}.png")),
    "classes_are_in_range": source_with(lambda number, example: example._replace(supervision=number)),
    "opening_again_gives_the_same": source_with(drawn),
    "opening_again_starts_anew": Shared,
    "another_process_reads_the_same": Unordered,
    "data_stay_as_they_are": source_with(touched),
    "leaves_global_randomness_alone": source_with(moved),
    "refuses_a_column_that_is_not_there": source_with(same, refuse=lambda self, spec: None),
}


@pytest.fixture
def flat(image_folder: Path, tmp_path: Path) -> Path:
    """Images of a folder without classes."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in image_folder.rglob("*.jpg"):
        path.rename(folder / path.name)
    return folder


def test_every_check_of_sources_has_a_fault_that_it_finds() -> None:
    assert SOURCE_FAULTS.keys() == sources.CHECKS.keys()


@pytest.mark.parametrize("name", SOURCE_FAULTS)
def test_a_fault_of_a_source_fails_the_check_that_names_it(flat: Path, name: str) -> None:
    found = failed(outcomes(sources.CHECKS, sources.Subject(SOURCE_FAULTS[name], f"folder:{flat}")))
    # What is drawn anew each time is another thing on every occasion.
    also = {"opening_again_gives_the_same": {"opening_again_starts_anew", "another_process_reads_the_same"}}
    assert name in found
    assert set(found) <= {name} | also.get(name, set())


@pytest.mark.parametrize("source", [Folder, ImageFolderSource])
def test_a_sound_source_passes(flat: Path, image_folder: Path, source: Callable[..., Source]) -> None:
    if source is ImageFolderSource:
        (image_folder / "some").mkdir(exist_ok=True)
        next(flat.iterdir()).rename(image_folder / "some" / "one.jpg")
    folder = flat if source is Folder else image_folder
    assert failed(outcomes(sources.CHECKS, sources.Subject(source, f"source:{folder}"))) == []


def test_every_built_in_source_says_what_it_is() -> None:
    assert SOURCES.faults(load=True) == []


def test_the_commands_print_a_line_a_check_and_end_with_1_if_one_failed(
    flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_noise(["check", "paper-released"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  alters_exactly_as_many_as_asked\n      0.1 of 600 alters 54, not 60\n" in printed
    (flat / "a").mkdir()
    next(flat.glob("*.jpg")).rename(flat / "a" / "one.jpg")
    assert check_source(["check", f"imagefolder:{flat}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("10 checks passed, 0 failed")
    with pytest.raises(UserError, match="needs the matrix"):
        check_noise(["check", "transition-matrix"])
