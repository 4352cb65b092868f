"""Labels that somebody published for samples of a source, joined to them by evidence.

A file is a CSV of ``key,label``, with a header or without; a list of labels in the source's order, ``.npy``
or ``.json``; or ``FILE.pt:NAME``, one label set of the files of CIFAR-N (J. Wei et al., ICLR 2022), of which
nothing is unpickled but tensors and arrays. Where it holds clean labels too, they say whether the rows of
the file are those of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nml.delimited import Line, read_lines
from nml.errors import UserError
from nml.labels import class_of_text
from nml.untrusted import Untrusted, read_json, shown
from shards.noise import Integers, Population
from shards.noise.matrix_file import read_array

_KEYS = ("key", "name", "id", "file", "filename", "file_name", "filepath", "path", "image")
_LABELS = ("label", "noisy_label", "given_label", "given", "noisy", "target", "class")
_CLEAN = ("clean_label", "clean", "true_label", "true", "original_label")
# Lists of labels are as long as the set; the limits on other JSON are for what describes one.
_MOST_JSON = 1 << 30
# How often labels in a wrong order may pass for better than chance.
_LEVEL = 0.01
_OTHER_ORDER = "its rows, or its classes, are in another order than the source's: name a CSV of KEY,LABEL"


class LabelFile(NamedTuple):
    """What a file says of every sample of a population.

    Attributes:
        given: The label of each, int64 [N], from 0 to K - 1.
        clean: The clean label of each as the file has it, int64 [N]; None where it has none.
    """

    given: Integers
    clean: Integers | None


def file_of(text: str) -> tuple[Path, str]:
    """Return the file that ``FILE`` or ``FILE.pt:NAME`` names, and the name of the label set in it."""
    stem, colon, name = text.partition(".pt:")
    return (Path(stem + ".pt"), name) if colon else (Path(text), "")


def read_labels(text: str, population: Population) -> LabelFile:
    """Return the labels of a file, in the order of the population.

    Raises:
        UserError: If it cannot be read, or does not have one label for every sample and no other.
    """
    file, name = file_of(text)
    clean: npt.ArrayLike | None = None
    if file.suffix == ".csv":
        return _by_key(file, population)
    if file.suffix == ".pt":
        given, clean = _tensors(file, name)
    elif file.suffix == ".json":
        given = _listed(file)
    else:
        given = read_array(file, "labels")
    return LabelFile(
        _in_order(given, file, population), None if clean is None else _in_order(clean, file, population)
    )


def refuse_other_order(text: str, labels: LabelFile, population: Population) -> None:
    """Raise a UserError if the labels are not those of these samples, as far as anything tells.

    That is: if the file's clean labels are not the source's, or if the labels agree with the clean ones no
    better than labels in any order would.
    """
    if labels.clean is not None and (wrong := int((labels.clean != population.labels).sum())):
        raise UserError(
            f"--model-file {text}: {wrong:,} of its {len(population):,} clean labels are not the source's",
            mend=_OTHER_ORDER,
        )
    if not is_better_than_chance(labels.given, population):
        agree = float((labels.given == population.labels).mean())
        raise UserError(
            f"--model-file {text}: {agree:.2%} of its labels are the clean ones, no more than in any order",
            mend=_OTHER_ORDER,
        )


def is_better_than_chance(given: Integers, population: Population) -> bool:
    """Whether labels agree with the clean ones better than in any order, by a one-sided test at 1 %."""
    from scipy.stats import binom

    samples = len(population)
    shares = np.bincount(given, minlength=population.num_classes) / max(samples, 1)
    chance = float(shares @ (population.class_sizes / max(samples, 1)))
    agree = int((given == population.labels).sum())
    # Where one class has all samples, every order is the same.
    return samples == 0 or chance >= 1 or float(binom.sf(agree - 1, samples, chance)) < _LEVEL


def _in_order(values: npt.ArrayLike, file: Path, population: Population) -> Integers:
    array = np.asarray(values).reshape(-1)
    if len(array) != len(population):
        raise UserError(
            f"--model-file {file}: holds {len(array):,} labels",
            possible=f"{len(population):,}, one a sample",
            mend="leave out the rows of samples that --skip-bad leaves out too (OUT.bad.csv lists them)",
        )
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "f" and np.all(array == np.rint(array))):
        raise UserError(f"--model-file {file}: its labels are not whole numbers but {array.dtype}")
    mend = "name a CSV with a line KEY,LABEL a sample, or write the set again"
    ordered = population.from_source_order(array, file, mend).astype(np.int64)
    wrong = np.flatnonzero((ordered < 0) | (ordered >= population.num_classes))
    if len(wrong):
        raise UserError(
            f"--model-file {file}: class {ordered[wrong[0]]}", possible=f"0 to {population.num_classes - 1}"
        )
    return ordered


def _by_key(file: Path, population: Population) -> LabelFile:
    """Join a CSV by the keys of the set, or by the names that its source has for them."""
    try:
        lines = list(read_lines(file, "csv"))
    except UserError as error:
        raise UserError(f"--model-file {error}") from error
    columns = _columns(file, lines)
    rows = lines[1:] if columns.header else lines
    short = next((line for line in rows if len(line.values) <= max(columns.places)), None)
    if short is not None:
        raise UserError(
            f"--model-file {file}: line {short.number} has {len(short.values)} columns",
            possible=f"{max(columns.places) + 1} or more, a key and a label among them",
        )
    found: dict[str, Line] = {}
    for line in rows:
        if (key := line.values[columns.key]) in found:
            raise UserError(
                f"--model-file {file}: line {line.number} has the key {shown(key)} a second time",
                mend="keep one line a sample",
            )
        found[key] = line
    order = _matched(file, found, population)
    classes = _Classes(file, population)
    given = np.array([classes.number(line, columns.label) for line in order], np.int64)
    if columns.clean is None:
        return LabelFile(given, None)
    return LabelFile(given, np.array([classes.number(line, columns.clean) for line in order], np.int64))


class _Columns(NamedTuple):
    """Which columns of a CSV hold what, and whether its first line says so."""

    header: bool
    key: int
    label: int
    clean: int | None

    @property
    def places(self) -> list[int]:
        return [place for place in (self.key, self.label, self.clean) if place is not None]


def _columns(file: Path, lines: Sequence[Line]) -> _Columns:
    first = [value.strip().lower() for value in lines[0].values] if lines else []
    key, label, clean = (_place(first, names) for names in (_KEYS, _LABELS, _CLEAN))
    if key is not None and label is not None:
        return _Columns(True, key, label, clean)
    if len(first) > 2:
        raise UserError(
            f"--model-file {file}: line 1 has {len(first)} columns and does not name a key and a label",
            possible=f"a header with one of {', '.join(_KEYS)} and one of {', '.join(_LABELS)}, and for the "
            f"clean labels, if they are there, one of {', '.join(_CLEAN)}; or lines KEY,LABEL",
        )
    return _Columns(False, 0, 1, None)


def _place(first: Sequence[str], names: Sequence[str]) -> int | None:
    return next((first.index(name) for name in names if name in first), None)


def _matched(file: Path, found: Mapping[str, Line], population: Population) -> list[Line]:
    """Return the line of every sample, by its key, or where the file has none of these, by its name."""
    keys = list(population.keys)
    names = [] if any(key in found for key in keys) else list(population.names)
    called = names if any(name in found for name in names) else keys
    missing = [name for name in called if name not in found]
    unknown = found.keys() - set(called)
    if missing or unknown:
        problems = []
        if missing:
            problems.append(f"has no label of {len(missing):,} samples, {missing[0]!r} the first")
        if unknown:
            line = min((found[name] for name in unknown), key=lambda line: line.number)
            problems.append(f"names {len(unknown):,} that there are not, the first in line {line.number}")
        raise UserError(
            f"--model-file {file}: {' and '.join(problems)}",
            possible=f"a line for each of the {len(called):,} samples, by its key or its name in the source",
        )
    if len(set(called)) != len(called):
        raise UserError(
            f"--model-file {file}: two samples of the source have one name", mend="name samples by their keys"
        )
    return [found[name] for name in called]


class _Classes:
    """Classes as a CSV writes them: by number, or by name."""

    def __init__(self, file: Path, population: Population) -> None:
        self._file = file
        self._count = population.num_classes
        self._named = {name: number for number, name in enumerate(population.classes or ())}

    def number(self, line: Line, place: int) -> int:
        text = line.values[place].strip()
        named = self._named.get(text)
        try:
            number = class_of_text(text)
        except ValueError as error:
            raise self._refused(line, str(error)) from error
        if not isinstance(number, int) or number >= self._count:
            number = -1
        if named is not None and number not in (-1, named):
            raise self._refused(
                line, f"{text}, which is class {named} by its name and {number} by its number"
            )
        if named is None and number < 0:
            raise self._refused(line, f"class {shown(text)}")
        return number if named is None else named

    def _refused(self, line: Line, what: str) -> UserError:
        return UserError(
            f"--model-file {self._file}: line {line.number} has {what}",
            possible=f"0 to {self._count - 1}, or the name of a class",
        )


def _listed(file: Path) -> list[Any]:
    try:
        labels = read_json(file, most=_MOST_JSON)
    except (OSError, Untrusted) as error:
        raise UserError(f"--model-file {file}: labels cannot be read: {error}") from error
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(f"--model-file {file}: is no list of class numbers", possible="[3, 0, 7, ...]")
    return labels


def _tensors(path: Path, name: str) -> tuple[npt.ArrayLike, npt.ArrayLike | None]:
    """Return one array of a torch file, and the clean labels that lie beside it in CIFAR-N's.

    Refused is any object that is neither tensor nor array.
    """
    import torch

    # What NumPy arrays inside a torch file need, by NumPy 1's and 2's name; none runs code of the file's.
    rebuild = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in "bBhHiIlLqQ"},
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    # The unpickler raises errors of many kinds on foreign bytes; none of them may pass as labels.
    except Exception as error:
        raise UserError(
            f"--model-file {path}: cannot be read safely: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(stored, dict):
        return np.asarray(stored), None
    if name not in stored:
        raise UserError(
            f"--model-file {path}:{name}: no such labels",
            possible=", ".join(f"{path}:{key}" for key in stored),
        )
    clean = stored.get("clean_coarse_label" if "coarse" in name else "clean_label")
    return np.asarray(stored[name]), None if clean is None else np.asarray(clean)
