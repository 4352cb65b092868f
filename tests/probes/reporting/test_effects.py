"""Trends over ladders, correlations over runs, and heads ranked over tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from probes.reporting.build import build
from probes.reporting.drawing import panel_svg
from probes.reporting.ladders import Run, change, ladders, rank_correlation, trend
from probes.reporting.ranks import rank_heads
from probes.reporting.selection import select
from probes.reporting.study import Study
from probes.results import Row
from tests.probes.report_parts import figure, table, text

MakeRow = Callable[..., Row]
MakeRows = Callable[..., list[Row]]
LEVELS = (0.0, 10.0, 20.0)


def of_seeds(*rows: tuple[float, ...]) -> list[Run]:
    return [
        Run(level, f"seed{seed}", value)
        for seed, values in enumerate(rows)
        for level, value in zip(LEVELS, values, strict=True)
    ]


def test_a_ladder_is_a_seed_that_has_every_level() -> None:
    runs = [*of_seeds((1, 2, 3), (4, 5, 6)), Run(0.0, "seed2", 7.0), Run(0.0, None, 8.0)]
    assert ladders(runs, LEVELS) == [[1, 2, 3], [4, 5, 6]]
    # Two runs of one seed at a level: it does not say which belongs to which.
    assert ladders([*runs, Run(0.0, "seed0", 9.0)], LEVELS) == []


def test_a_change_is_taken_within_ladders() -> None:
    found = change(of_seeds((0.1, 0.2, 0.4), (0.8, 1.0, 1.1)), [10.0, 20.0], 0.0)
    assert found.values == pytest.approx((0.2, 0.25))
    assert change(of_seeds((0.1, 0.2, 0.4)), [30.0], 0.0) is None


def test_pages_test_is_of_the_declared_order() -> None:
    falls = of_seeds((3, 2, 1), (9, 7, 5), (4, 2, 1))
    # All orders as declared: L is 3 (1 + 4 + 9), and p is 1 / 3!^3.
    found = trend(falls, LEVELS, rising=False)
    assert (found.statistic, found.p) == (42, pytest.approx(1 / 216))
    assert trend(falls, LEVELS, rising=True).p == 1
    assert found.slope.values == pytest.approx((-0.1, -0.2, -0.15))


def test_a_trend_needs_three_levels_and_two_ladders() -> None:
    one = trend(of_seeds((3, 2, 1)), LEVELS, rising=False)
    assert (one.p, one.slope.n, one.slope.p) == (None, 1, None)
    assert trend(of_seeds((3, 2, 1), (3, 2, 1)), LEVELS[:2], rising=False).slope is None


def test_a_rank_correlation_over_runs_has_the_interval_of_fisher() -> None:
    found = rank_correlation([1, 2, 3, 4, 5, 6], [10, 30, 20, 40, 60, 50])
    rho = 1 - 6 * 4 / (6 * 35)
    half = 1.959964 / (6 - 3) ** 0.5
    assert found.rho == pytest.approx(rho)
    ends = np.tanh([np.arctanh(rho) - half, np.arctanh(rho) + half])
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-6)
    perfect = rank_correlation([1, 2, 3, 4], [1, 2, 3, 4])
    assert (perfect.rho, perfect.low) == (1, None)
    assert rank_correlation([1, 2], [1, 2]) is rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_every_effect_of_a_study_is_in_a_table_with_its_ladders(digits: MakeRows) -> None:
    report = build(digits(noises=(0.0, 0.1, 0.3), repetitions=(0, 1, 2)))
    changes = text(table(report, "effects-0-changes"))
    assert [line[0] for line in changes][:3] == [
        "In-domain accuracy, lp",
        "In-domain accuracy, mlp",
        "In-domain accuracy, nmtune",
    ]
    assert changes[-1][0] == "Encoder LSVR, out-of-domain"
    assert {line[-1] for line in changes} == {"3 ladders"}
    trends = {line[0]: line for line in text(table(report, "effects-0-trends"))}
    assert trends["Out-of-domain accuracy, lp"][1] == "falls"
    assert trends["Encoder SVE, in-domain"][1] == "rises"
    assert {line[-1] for line in text(table(report, "effects-0-spectra"))} == {"9"}
    assert [len(panel.series) for panel in figure(report, "effects-0").panels] == [3, 3]


def test_single_runs_have_effects_without_intervals_or_marks(digits: MakeRows) -> None:
    found = table(build(digits(noises=(0.0, 0.1))), "effects-0-changes")
    assert not any("[" in cell.text or cell.strong for row in found.rows for cell in row[1:])
    assert "no noise level has two pre-training runs" in found.caption


def over_tasks(row: MakeRow, count: int, heads: tuple[str, ...]) -> list[Row]:
    luck = np.random.default_rng(0)
    gain = {"lp": 0.0, "mlp": 0.02, "nmtune": 0.04}
    return [
        dataclasses.replace(
            row(head=head, task=f"t{task:02d}", dataset=f"t{task:02d}", repetition=run),
            metric=0.5 + gain[head] + luck.normal(0, 0.001),
        )
        for task in range(count)
        for head in heads
        for run in range(2)
    ]


def test_heads_are_ranked_by_task_and_not_by_run(row: MakeRow) -> None:
    heads = ("lp", "mlp", "nmtune")
    study = Study(select(over_tasks(row, 12, heads)))
    found = rank_heads(study.main, heads)
    assert (found.heads, found.ranks) == (("nmtune", "mlp", "lp"), (1.0, 2.0, 3.0))
    # Of the same order in all of 12 tasks: chi2 = 12 x 2. CD = 2.344 sqrt(3 x 4 / (6 x 12)), Demsar's table.
    assert found.statistic == pytest.approx(24)
    assert found.critical_difference == pytest.approx(2.343 * (1 / 6) ** 0.5, abs=1e-3)
    assert found.p_values[0][2] < 0.001
    assert rank_heads(study.main, heads[:2]) is None


def test_ranks_need_many_tasks_and_are_drawn_with_their_bars(row: MakeRow) -> None:
    heads = ("lp", "mlp", "nmtune")
    report = build(over_tasks(row, 6, heads))
    drawn = figure(report, "ranks-figure")
    svg = panel_svg(drawn, drawn.panels[0])
    assert all(f"{head} " in svg for head in heads[1:])
    assert text(table(report, "ranks-table"))[0][2:5] == ["3.00", "2.00", "1.00"]
    few = build(over_tasks(row, 4, heads))
    assert any(gap.title == "Heads ranked over tasks" for gap in few.gaps)
