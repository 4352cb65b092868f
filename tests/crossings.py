"""Features that may meet in a run: rows in which every two values meet, and the pairs that are refused.

The table is crossings.yaml; ``docs/testing.md`` says how a feature joins it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]

TABLE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Refusal:
    """Values that cannot meet, and what the user reads of it."""

    values: Row
    says: str


class Crossings:
    """One section of the table.

    Args:
        name: Of the section.
    """

    def __init__(self, name: str) -> None:
        self.section: dict[str, Any] = yaml.safe_load(TABLE.read_text())[name]

    @property
    def features(self) -> dict[str, list[str]]:
        """Every feature with its values; a reference has the first of them."""
        return {name: list(values) for name, values in self.section["features"].items()}

    def value(self, feature: str, value: str) -> dict[str, Any]:
        """Return what the table says of a value; a text alone is its words on the command line."""
        known, refused = (self.section.get(part, {}) for part in ("features", "refused_only"))
        found = {**known.get(feature, {}), **refused.get(feature, {})}[value]
        return found if isinstance(found, dict) else {"words": found or ""}

    def words(self, row: Row, **places: object) -> list[str]:
        """Return the words of a row's values, with their places filled in."""
        found = [self.value(*item).get("words", "").split() for item in row.items()]
        return [word.format(**places) for words in found for word in words]

    @cached_property
    def refused(self) -> list[Refusal]:
        """What is refused, a line each; a list of values stands for each of them."""
        found = []
        for line in self._lines("refused"):
            choices = {name: value if isinstance(value, list) else [value] for name, value in line.items()}
            says = choices.pop("says")[0]
            for values in itertools.product(*choices.values()):
                found.append(Refusal(dict(zip(choices, map(str, values), strict=True)), says))
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """Rows in which every two values meet that can."""
        return cover(self.features, self.impossible)

    @property
    def impossible(self) -> list[Row]:
        """Return the values that no row holds together."""
        apart = [
            {name: text for name, text in line.items() if name != "why"} for line in self._lines("apart")
        ]
        return [*(refusal.values for refusal in self.refused), *apart]

    def _lines(self, part: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.section.get(part, [])
        return lines

    def completed(self, refusal: Refusal) -> Row:
        """Return a row that holds what is refused, and nothing else that is."""
        others = [other.values for other in self.refused if other is not refusal]
        features = {**self.features, **{name: [value] for name, value in refusal.values.items()}}
        found = complete(refusal.values, features, others, lambda _, feature, value: 0)
        assert found, f"{refusal.values} meets other refusals whatever stands beside it"
        return found


def cover(features: Mapping[str, Sequence[str]], impossible: Sequence[Row]) -> list[Row]:
    """Return few rows that hold every two values of different features (greedily, as AETG does).

    Args:
        features: Every feature with its values.
        impossible: Values that no row may hold together.

    Raises:
        ValueError: If two values can meet only in rows that are impossible, and are not so themselves.
    """
    open_pairs = {pair: None for pair in pairs_of(features) if not _holds(dict(pair), impossible)}
    rows: list[Row] = []

    def gain(row: Row, feature: str, value: str) -> tuple[int, int]:
        met = sum(frozenset([(feature, value), item]) in open_pairs for item in row.items())
        # Of equals the one that is rare so far: by chance it meets a third value.
        return met, -sum(other[feature] == value for other in rows)

    while open_pairs:
        seed = dict(next(iter(open_pairs)))

        row = complete(seed, features, impossible, gain)
        if row is None:
            raise ValueError(f"{seed} cannot meet: say so in the table, or why not")
        for pair in itertools.combinations(row.items(), 2):
            open_pairs.pop(frozenset(pair), None)
        rows.append(row)
    return rows


def complete(
    row: Row, features: Mapping[str, Sequence[str]], impossible: Sequence[Row], gain: Any
) -> Row | None:
    """Return the row with a value of every feature, those first that gain most; None if there is none."""
    missing = [name for name in features if name not in row]
    if not missing:
        return {name: row[name] for name in features}
    # The hardest first: few values are left to what is refused beside many others.
    feature = max(missing, key=lambda name: sum(name in values for values in impossible))
    for value in sorted(features[feature], key=lambda value: gain(row, feature, value), reverse=True):
        longer = {**row, feature: value}
        if not _holds(longer, impossible) and (found := complete(longer, features, impossible, gain)):
            return found
    return None


def pairs_of(features: Mapping[str, Sequence[str]]) -> Iterator[Pair]:
    """Yield every two values of different features."""
    for (one, values), (other, others) in itertools.combinations(features.items(), 2):
        for value, beside in itertools.product(values, others):
            yield frozenset([(one, value), (other, beside)])


def _holds(row: Row, impossible: Sequence[Row]) -> bool:
    return any(values.items() <= row.items() for values in impossible)


def label(row: Row) -> str:
    """Return a row's name in a test."""
    return " ".join(f"{name}={value}" for name, value in row.items())
