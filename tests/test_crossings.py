"""The rows of crossings.yaml hold every two values that can meet, and few times more than they must."""

from __future__ import annotations

import itertools

import pytest

from tests.crossings import Crossings, cover, pairs_of

SECTIONS = ["training", "data", "probing"]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_two_values_meet_in_a_row_or_are_refused(section: str) -> None:
    crossings = Crossings(section)
    refused = [values.items() for values in crossings.impossible]
    met = {frozenset(pair) for row in crossings.rows for pair in itertools.combinations(row.items(), 2)}
    for pair in pairs_of(crossings.features):
        assert (pair in met) != any(values <= pair for values in refused), sorted(pair)
    assert not [row for row in crossings.rows if any(values <= row.items() for values in refused)]


@pytest.mark.parametrize("section", SECTIONS)
def test_rows_are_few(section: str) -> None:
    crossings = Crossings(section)
    most, second = sorted((len(values) for values in crossings.features.values()), reverse=True)[:2]
    assert len(crossings.rows) <= 2 * most * second


def test_values_that_can_only_meet_where_others_are_refused_are_told() -> None:
    features = {"a": ["1", "2"], "b": ["1", "2"], "c": ["1", "2"]}
    hidden = [{"a": "2", "c": "1"}, {"b": "2", "c": "2"}]
    with pytest.raises(ValueError, match="cannot meet: say so in the table"):
        cover(features, hidden)
