"""What a source promises, as small named checks on the data that it is named with.

A check that fails says what was promised and what was seen; ``python -m shards.sources check NAME:ARGUMENT``
runs all of them. :mod:`nml.conformance` says how they run as tests of another package.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import unittest
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_args

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
from nml.images import image_extension
from nml.randomness import scrambled_randomness
from nml.sources import ByteRange, Example, Kind, Source, SourceSpec, content_of
from nml.untrusted import parse_json

# Of larger data the first samples stand for all.
MOST = 5000
_TAR = ".tar"


class Seen(NamedTuple):
    """What a check compares of one sample: its name, class or caption, and the hash of its content."""

    name: str
    supervision: int | str
    content: str


class Subject:
    """A source under check.

    Args:
        source: The class.
        text: What a user types, ``NAME:ARGUMENT``.
        options: Further fields of :class:`nml.sources.SourceSpec`, such as ``label_column``.
    """

    def __init__(self, source: Callable[[SourceSpec], Source], text: str, **options: str) -> None:
        self.source = source
        self.text = text
        self.options = options

    def open(self, **options: str) -> Source:
        """Return the source, opened anew."""
        name, _, argument = self.text.partition(":")
        given = {**self.options, **options}
        return self.source(SourceSpec(text=self.text, name=name, argument=argument, **given))  # type: ignore[arg-type]

    def read(self) -> list[Seen]:
        """Return what a source that is opened anew holds."""
        return [seen(example) for example in itertools.islice(self.open(), MOST)]

    @functools.cached_property
    def examples(self) -> list[Example]:
        """What it holds, as it comes."""
        return list(itertools.islice(self.open(), MOST))

    @functools.cached_property
    def first(self) -> list[Seen]:
        """What it held when it was first read."""
        return list(map(seen, self.examples))


def seen(example: Example) -> Seen:
    """Return what is compared of a sample."""
    content = _bytes(example)
    digest = hashlib.sha256(content or repr(example.texts).encode())
    return Seen(example.name, example.supervision, digest.hexdigest())


def _bytes(example: Example) -> bytes:
    if (content := content_of(example.image)) is not None:
        return content
    place = example.image
    if not isinstance(place, ByteRange):
        raise CheckFailed(
            f"the image of {example.name!r} is {type(place).__name__}; expected bytes or ByteRange"
        )
    with Path(place.path).open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def has_the_contract(subject: Subject) -> None:
    """Kind, class names, whether it is held out, and the set it reads, are said before reading."""
    source = subject.open()
    promise(source.kind in get_args(Kind), f"kind is {source.kind!r}; possible: {', '.join(get_args(Kind))}")
    promise(isinstance(source.held_out, bool), f"held_out is {source.held_out!r}, not True or False")
    promise(source.parent is None or {"fingerprint", "level"} <= source.parent.keys(), "parent names no set")
    if source.classes is not None:
        promise(isinstance(source.classes, tuple), f"classes are a {type(source.classes).__name__}, no tuple")
        promise(len(set(source.classes)) == len(source.classes), "two classes have one name")


def samples_are_whole(subject: Subject) -> None:
    """There are samples, each with a name in UTF-8 and an image of a known format (or texts)."""
    promise(bool(subject.examples), "no sample")
    for example in subject.examples:
        promise(
            isinstance(example, Example), f"yields {type(example).__name__}; expected nml.sources.Example"
        )
        promise(isinstance(example.name, str) and bool(example.name), f"a sample is named {example.name!r}")
        example.name.encode()
        if not example.texts:
            image = _bytes(example)
            promise(image_extension(image) is not None, f"{example.name!r} is no image of a known format")


def names_are_unique(subject: Subject) -> None:
    """No two samples have one name, but in tars that each count from 0."""
    names = Counter(
        (example.image.path if isinstance(example.image, ByteRange) else "", example.name)
        if isinstance(example.image, ByteRange) and example.image.path.endswith(_TAR)
        else ("", example.name)
        for example in subject.examples
    )
    (_, name), times = max(names.items(), key=lambda item: item[1])
    promise(times == 1, f"{times} samples are named {name!r}")


def classes_are_in_range(subject: Subject) -> None:
    """Each class is a name, or a number below that of the classes; each caption is a text."""
    source = subject.open()
    for example in subject.examples:
        try:
            value = example.checked(source.kind, "--source")
        except UserError as error:
            raise CheckFailed(error.what) from error
        if source.kind == "class" and source.classes is not None:
            known = value < len(source.classes) if isinstance(value, int) else value in source.classes
            promise(known, f"{example.name!r} has class {value!r}; there are {len(source.classes)} classes")


def opening_again_gives_the_same(subject: Subject) -> None:
    """Names, supervision, content, order and number are the same, wherever random generators stand."""
    with scrambled_randomness():
        again = subject.read()
    promise(len(again) == len(subject.first), f"{len(subject.first)} samples, then {len(again)}")
    for before, after in zip(subject.first, again, strict=True):
        promise(
            before == after, f"{before.name!r} was followed by what it was not: {after.name!r}, or changed"
        )


def opening_again_starts_anew(subject: Subject) -> None:
    """A write that was stopped begins again: what another one has read is not lost to the next."""
    expected = subject.first
    begun = iter(subject.open())
    next(begun)
    promise(subject.read() == expected, "after another one was read in part, it holds other samples")


def another_process_reads_the_same(subject: Subject) -> None:
    """Nothing depends on the process: the order of a set of texts differs in each."""
    there = in_another_process(
        _digest_there, address(subject.source), subject.text, json.dumps(subject.options)
    )
    promise(there == _digest(subject.first), "another process reads other samples, or in another order")


def data_stay_as_they_are(subject: Subject) -> None:
    """Files are read, never written, removed or added."""
    before = _files(subject.text)
    subject.read()
    after = _files(subject.text)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    promise(not changed, f"reading changed {', '.join(changed[:3])}")


def leaves_global_randomness_alone(subject: Subject) -> None:
    """Reading leaves the random generators of torch, numpy and Python as they were."""
    with untouched_randomness("reading"):
        subject.read()


def refuses_a_column_that_is_not_there(subject: Subject) -> None:
    """A column that the data do not have is refused in one line, not passed over."""
    column = "no-such-column"
    refused(lambda: next(iter(subject.open(label_column=column)), None), f"--label-column {column}")


CHECKS = checks_of(__name__)


def _digest(samples: list[Seen]) -> str:
    return hashlib.sha256(repr(samples).encode()).hexdigest()


def _digest_there(source: str, text: str, options: str) -> str:
    return _digest(Subject(found_at(source), text, **parse_json(options)).read())


def _files(text: str) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file that the argument of a source names."""
    root = Path(text.partition(":")[2]).expanduser()
    if root == Path() or not root.exists():
        raise unittest.SkipTest("its argument names no file or folder of this machine")
    files = [root, *root.rglob("*")] if root.is_dir() else [root]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
