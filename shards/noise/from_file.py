"""Noise from a file of labels: real human annotations, or any other labels of the same samples.

``--model-file`` names a CSV with a line ``key,label`` a sample, an ``.npy`` of labels in the
source's order, or ``FILE.pt:NAME`` for one label set of the files of CIFAR-N (J. Wei et al., ICLR
2022), which are read without unpickling anything but tensors and arrays.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nml.errors import UserError
from shards.noise import Flips, Integers, Kind, Population
from shards.noise.matrix_file import read_array

# How far a ratio that a user asks for may be from what the file holds.
_TOLERANCE = Fraction(5, 1000)


class FromFile:
    """The samples whose label in the file differs from the clean one; the file decides the ratio."""

    kind: ClassVar[Kind] = "class"
    nested: ClassVar[bool] = False
    own_ratio: ClassVar[bool] = True

    def __init__(self, model_file: str | None = None) -> None:
        if not model_file:
            raise UserError(
                "--model from-file: needs the labels",
                mend="name them with --model-file labels.csv (lines KEY,LABEL)",
            )
        name, colon, self._name = model_file.partition(".pt:")
        self._file = Path(name + ".pt") if colon else Path(model_file)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:  # noqa: ARG002 - nothing random here
        """Return the one level that the file holds.

        Raises:
            UserError: If a ratio was asked for that the file does not hold.
        """
        given = self._labels(population)
        wrong = np.flatnonzero((given < 0) | (given >= population.num_classes))
        if len(wrong):
            raise UserError(
                f"--model-file {self._file}: class {given[wrong[0]]}",
                possible=f"0 to {population.num_classes - 1}",
            )
        rows = np.flatnonzero(given != population.labels)
        realised = Fraction(len(rows), max(len(population), 1))
        if len(ratios) > 1 or any(abs(ratio - realised) > _TOLERANCE for ratio in ratios):
            asked = " ".join(f"{float(ratio):g}" for ratio in ratios)
            raise UserError(
                f"--noise {asked}: of the labels in {self._file}, {float(realised):.4f} are not the clean",
                mend=f"ask for --noise {float(realised):.4f}",
            )
        return [Flips(rows, given[rows])]

    def _labels(self, population: Population) -> Integers:
        """Return the file's label of every sample, int64 [N]."""
        if self._file.suffix == ".csv":
            return self._by_key(population)
        array = (
            _tensor(self._file, self._name)
            if self._file.suffix == ".pt"
            else np.asarray(read_array(self._file, "labels"))
        ).reshape(-1)
        if len(array) != len(population):
            raise UserError(
                f"--model-file {self._file}: holds {len(array):,} labels",
                possible=f"{len(population):,}, one a sample",
            )
        mend = "name a CSV with a line KEY,LABEL a sample, or write the set again"
        return population.from_source_order(array, self._file, mend).astype(np.int64)

    def _by_key(self, population: Population) -> Integers:
        try:
            with self._file.open(newline="") as file:
                found = {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2}
            labels = [int(found[key]) for key in population.keys]
        except KeyError as error:
            raise UserError(f"--model-file {self._file}: has no label of sample {error}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"--model-file {self._file}: labels cannot be read: {error}") from error
        return np.array(labels, np.int64)


def _tensor(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Return one array of a torch file, refusing any object that is neither tensor nor array."""
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
    if isinstance(stored, dict):
        if name not in stored:
            raise UserError(
                f"--model-file {path}:{name}: no such labels",
                possible=", ".join(f"{path}:{key}" for key in stored),
            )
        stored = stored[name]
    return np.asarray(stored)
