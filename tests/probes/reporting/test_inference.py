"""Intervals, adjusted p values and marks: what a handful of pre-training runs may say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.reporting.build import build
from probes.reporting.inference import Judged, contrast, detectable, equivalence, estimate, holm, judge
from probes.reporting.wording import points
from probes.results import Row
from tests.probes.report_parts import table, text

MakeRows = Callable[..., list[Row]]
SOME = [0.01, 0.02, 0.03, 0.04]


def test_the_interval_is_students_over_runs() -> None:
    # t(0.975, 3) = 3.18245, from the usual table; stdev of 1, 2, 3, 4 is 1.29099.
    found = estimate(SOME)
    assert found.low == pytest.approx(0.025 - 3.18245 * 0.0129099 / 2, abs=1e-6)
    assert found.high == pytest.approx(0.025 + 3.18245 * 0.0129099 / 2, abs=1e-6)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=12, unique=True), st.integers(-1000, 1000))
def test_the_interval_moves_with_the_values(values: list[int], shift: int) -> None:
    found = estimate([value / 1000 for value in values])
    moved = estimate([(value + shift) / 1000 for value in values])
    assert found.low <= found.mean <= found.high
    assert moved.low == pytest.approx(found.low + shift / 1000, abs=1e-9)


@pytest.mark.parametrize("values", [[0.02], [0.02, 0.02]])
def test_one_run_and_runs_that_agree_to_the_last_digit_have_no_interval(values: list[float]) -> None:
    found = estimate(values)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert detectable(found) is equivalence(found, 1.0) is None


def test_groups_that_share_no_seed_are_compared_by_welch() -> None:
    found = contrast([3.0, 4.0, 5.0], [1.0, 1.5, 2.0])
    # Variances 1 and 0.25: standard error 0.6455, 2.94 degrees of freedom, t(0.975) = 3.218.
    assert found.mean == 2.5
    assert found.high - found.mean == pytest.approx(3.218 * 0.6455, abs=2e-3)
    assert found.n == 6
    assert contrast([3.0], [1.0, 2.0]).p is None


def test_holm_multiplies_the_smallest_by_all_and_skips_what_has_no_p() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([None]) == [None]


def test_no_effect_needs_an_interval_within_the_margin() -> None:
    tight = [0.001, -0.001, 0.0005, -0.0004]
    assert equivalence(estimate(tight), 0.005) < 0.05
    assert equivalence(estimate(tight), 0.0001) > 0.05
    assert equivalence(contrast(tight, tight[::-1]), 0.005) < 0.05


@pytest.mark.parametrize(("runs", "deviations"), [(2, 11.5), (3, 3.26), (4, 2.13), (8, 1.16)])
def test_the_detectable_difference_is_that_of_80_percent_power(runs: int, deviations: float) -> None:
    values = np.arange(runs) - (runs - 1) / 2
    assert detectable(estimate(values / values.std(ddof=1))) == pytest.approx(deviations, rel=0.01)


def test_nothing_is_marked_where_no_level_has_two_runs() -> None:
    clear = estimate([0.01, 0.011, 0.0105])
    assert [one.marked for one in judge([(clear, True), (clear, False)])] == [True, False]
    # What is not judged does not count among the comparisons either.
    assert judge([(clear, True), (clear, False)])[0].p_holm == clear.p


@pytest.mark.parametrize(
    ("values", "text", "strong"),
    [
        ([0.01, 0.012, 0.011], "+1.1 [+0.9, +1.3]", True),
        ([-0.01, -0.012, -0.011], "−1.1 [−1.3, −0.9]", True),
        ([0.01, -0.01, 0.0], "+0.0 [−2.5, +2.5]", False),
        ([0.0002, 0.0003, 0.00025], "+0.0 [+0.0, +0.0]", False),
        ([0.01], "+1.0", False),
        ([-0.0004], "+0.0", False),
    ],
)
def test_a_difference_is_set_off_only_as_printed(values: list[float], text: str, strong: bool) -> None:
    found = estimate(values)
    cell = points(Judged(found, found.p, marked=found.p is not None and found.p < 0.05))
    assert (cell.text, cell.strong) == (text, strong)


def marked(rows: list[Row], name: str) -> list[str]:
    return [cell.text for row in table(build(rows), name).rows for cell in row if cell.strong]


def test_many_tasks_and_seeds_of_one_run_mark_nothing_and_the_reason_stands_there(digits: MakeRows) -> None:
    rows = digits(noises=(0.0, 0.1, 0.2), seeds=range(5))
    for name in ("heads-table", "datasets-id-table"):
        assert marked(rows, name) == []
        assert "no noise level has two pre-training runs" in table(build(rows), name).caption


def test_a_difference_that_every_run_bears_out_is_marked(digits: MakeRows) -> None:
    rows = digits(heads=("lp", "nmtune"), repetitions=range(6))
    assert marked(rows, "heads-table")
    caption = table(build(rows), "heads-table").caption
    assert "Holm's adjustment over the 6 comparisons" in caption
    assert "df = runs − 1" in caption
    lines = text(table(build(rows), "heads-table"))
    assert [(line[0], line[4]) for line in lines if line[1] == "nmtune"] == [
        ("quickstart, 0 % noise", "6"),
        ("quickstart, 20 % noise", "6"),
        ("quickstart, all levels", "12"),
    ]
