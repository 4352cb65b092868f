"""``python -m probes.power``: what it promises of a number of ladders, held against simulated studies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nml.errors import UserError
from probes import power
from probes.reporting.inference import detectable, equivalence, estimate
from probes.reporting.planning import deviation, of_ladders, shown_by, units_to_rule_out, units_to_show
from probes.results import Row, write_rows

STUDIES = 3000


@pytest.mark.parametrize(("effect", "claims"), [(0.4, 1), (1.0, 1), (2.5, 12)])
def test_so_many_units_show_the_difference_in_80_of_100_studies_and_one_less_does_not(
    effect: float, claims: int
) -> None:
    from scipy import stats

    units, luck = units_to_show(effect, 1.0, claims), np.random.default_rng(1)

    def found(number: int) -> float:
        values = luck.normal(effect, 1.0, (STUDIES, number))
        return float(np.mean(stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05 / claims))

    # Three standard errors of a share of 80 % are 0.022.
    assert found(units) > 0.78
    assert found(units - 1) < 0.82


def test_so_many_units_rule_an_effect_out_in_80_of_100_studies_without_one() -> None:
    units, luck = units_to_rule_out(1.0, 1.0), np.random.default_rng(1)

    def found(number: int) -> float:
        studies = luck.normal(0.0, 1.0, (600, number))
        return float(np.mean([equivalence(estimate(study), 1.0) < 0.05 for study in studies]))

    assert found(units) > 0.75
    assert found(units - 2) < 0.80


@pytest.mark.parametrize("units", [2, 3, 10])
def test_what_units_show_is_what_the_report_says_of_them(units: int) -> None:
    values = np.random.default_rng(1).normal(size=units)
    assert shown_by(units, float(np.std(values, ddof=1))) == pytest.approx(
        detectable(estimate(values.tolist())), rel=1e-3
    )


def test_the_bounds_of_a_deviation_hold_as_often_as_they_say() -> None:
    found = np.random.default_rng(1).normal(size=(STUDIES, 4)).std(axis=1, ddof=1)
    bounds = [deviation(float(value), 4) for value in found]
    assert np.mean([one.low < 1 < one.high for one in bounds]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([one.cautious > 1 for one in bounds]) == pytest.approx(0.80, abs=0.03)


def test_ladders_vary_as_simulated_ones_do() -> None:
    luck, shared, levels = np.random.default_rng(1), 0.5, 4
    common = luck.normal(0, np.sqrt(shared), (20_000, 1))
    runs = common + luck.normal(0, np.sqrt(1 - shared), (20_000, levels + 1))
    differences = runs[:, 1:].mean(axis=1) - runs[:, 0]
    assert np.std(differences) == pytest.approx(of_ladders(1.0, levels, shared), rel=0.03)


def test_a_difference_that_nobody_can_afford_is_no_number() -> None:
    assert units_to_show(0.001, 1.0) is units_to_rule_out(0.001, 1.0) is None


def test_a_plan_from_results_has_the_deviation_of_each_claim(
    row: Callable[..., Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shift = {0: 0.0, 1: 0.01, 2: 0.05}
    rows = [
        dataclasses.replace(made, metric=0.8 - noise * shift[run])
        for noise in (0.0, 0.2)
        for run in shift
        for made in [row(noise=noise, head="lp", repetition=run, dataset="digits-thick")]
    ]
    write_rows(tmp_path / "results", rows)
    power.main([str(tmp_path / "results"), "--margin", "0.2", "--json"])
    told = json.loads(capsys.readouterr().out)
    (plan,) = [one for one in told["plans"] if one["claim"] == "noise-hurts-ood"]
    values = 100 * 0.2 * np.array(list(shift.values()))
    assert plan["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert plan["to_show"] == units_to_show(0.2, plan["deviation"])
    assert plan["to_show"] <= plan["to_show_among_claims"] < plan["to_show_cautious"]
    assert {"claim", "reason"} == set(told["not_planned"][0])
    power.main([str(tmp_path / "results"), "--margin", "0.2"])
    table = capsys.readouterr().out
    assert plan["claim"] in table
    assert "not planned: " in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["results", "--deviation", "0.5"], "two sources"),
        (["--deviation", "0"], "a number above 0"),
        (["--margin", "0"], "a number above 0"),
        (["--deviation", "1", "--shared", "1"], "below 1"),
        (["--levels", "3"], "leave them out"),
        (["--deviation", "1", "--claims", "0"], "from 1 on"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        power.main(arguments)
