"""Noise from a file of labels: real human annotations, or any other labels of the same samples.

``--model-file`` names a file of :mod:`shards.noise.label_file`. The ratio is what the file holds, and a file
of labels in another order than the samples is refused, as far as anything tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np

from nml.errors import UserError
from shards.noise import Flips, Kind, Population
from shards.noise.label_file import file_of, read_labels, refuse_other_order

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
        self._text = model_file

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:  # noqa: ARG002 - nothing random here
        """Return the one level that the file holds.

        Raises:
            UserError: If its labels are not those of the samples, or a ratio was asked for that it does
                not hold.
        """
        labels = read_labels(self._text, population)
        refuse_other_order(self._text, labels, population)
        rows = np.flatnonzero(labels.given != population.labels)
        realised = Fraction(len(rows), max(len(population), 1))
        if len(ratios) > 1 or any(abs(ratio - realised) > _TOLERANCE for ratio in ratios):
            asked = " ".join(f"{float(ratio):g}" for ratio in ratios)
            named = f"{float(realised):.4f}"
            or_named = f"ask for --noise {named}, or " if 0 < Fraction(named) < 1 else ""
            raise UserError(
                f"--noise {asked}: of the labels in {file_of(self._text)[0]}, {named} are not the clean",
                mend=f"{or_named}leave --noise out: the file decides",
            )
        return [Flips(rows, labels.given[rows])]
