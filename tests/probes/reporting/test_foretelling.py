"""Early measures of runs against validation accuracy: what is called better, and how often by chance."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nml.errors import UserError
from probes.predict_noise import main
from probes.reporting.early import early_families
from probes.reporting.foretelling import BETTER, NO_BETTER, foretell, level_errors, told
from probes.reporting.inference import LEVEL
from probes.reporting.records import Table
from probes.reporting.sections import foretold
from probes.results import Row, write_rows
from tests.probes.reporting.made_up import make_row

STUDIES = 4000
LEVELS = np.repeat([0.0, 5.0, 10.0, 20.0, 30.0, 40.0], 3)


def called_better(measures: list[Any], validation: Any, y: Any, levels: Any) -> Any:
    """Return of which of many studies at once any measure is called better, bool [S]."""
    base = level_errors(validation, y, levels)
    gains = np.stack([base - level_errors(x, y, levels) for x in measures])
    p = stats.ttest_1samp(gains, 0.0, axis=-1).pvalue
    steps = LEVEL / (len(p) - np.arange(len(p)))[:, None]
    rejected = np.cumprod(np.sort(p, axis=0) < steps, axis=0).sum(axis=0)
    return ((p.argsort(0).argsort(0) < rejected) & (gains.mean(-1) > 0)).any(axis=0)


def simulated(levels: Any, *deviations: float, studies: int = STUDIES, bent: bool = False) -> Any:
    """Return final scores and early measures that see them with so much error, each [S, R]."""
    draw = np.random.default_rng(7)
    effect = 3 * np.sin(levels / 12) - 0.1 * levels if bent else -0.2 * levels
    latent = effect + draw.normal(0, 0.5, (studies, len(levels)))
    final = latent + draw.normal(0, 0.5, latent.shape)
    return final, *(latent + draw.normal(0, each, latent.shape) for each in deviations)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("levels", [np.linspace(0, 40, 5), LEVELS])
def test_what_is_no_better_is_called_better_in_five_percent_at_most(levels: Any, bent: bool) -> None:
    y, validation, *measures = simulated(levels, 1.0, 1.0, 1.0, 1.0, bent=bent)
    # Three standard errors of such a share.
    bound = 0.05 + 3 * np.sqrt(0.05 * 0.95 / STUDIES)
    assert called_better(measures, validation, y, levels).mean() <= bound
    noise = list(np.random.default_rng(1).normal(size=(3, *y.shape)))
    assert called_better(noise, validation, y, levels).mean() <= 0.01


def test_a_measure_that_tells_more_is_found() -> None:
    y, validation, good, *bad = simulated(LEVELS, 4.0, 0.2, 3.0, 3.0)
    found = called_better([good, *bad], validation, y, LEVELS)
    assert found.mean() > 0.6
    for study in range(8):
        measures = {"good": good[study], "bad": bad[0][study], "worse": bad[1][study]}
        rows = foretell(measures, validation[study], y[study], LEVELS)
        assert any(row.verdict == BETTER for row in rows) == found[study]
        assert [row.measure for row in rows[:2]] == ["validation accuracy", "constant"]


def test_a_level_is_told_by_the_line_through_the_others() -> None:
    y, x = (each[0] for each in simulated(LEVELS, 1.0, studies=1))
    expected = np.concatenate(
        [
            np.polyval(np.polyfit(x[level != LEVELS], y[level != LEVELS], 1), x[level == LEVELS])
            for level in np.unique(LEVELS)
        ]
    )
    assert told(x, y, LEVELS) == pytest.approx(expected)
    # A measure that does not differ tells the mean of the others.
    assert told(np.ones_like(y), y, LEVELS)[0] == pytest.approx(y[LEVELS != 0].mean())


def test_a_measure_that_a_level_lacks_is_held_to_the_other_levels() -> None:
    y, validation, memorised = (each[0] for each in simulated(LEVELS, 1.0, 1.0, studies=1))
    memorised[LEVELS == 0] = np.nan
    rows = {row.measure: row for row in foretell({"memorised": memorised}, validation, y, LEVELS)}
    assert rows["memorised"].levels == 5
    kept = LEVELS > 0
    base = level_errors(validation[kept], y[kept], LEVELS[kept]).mean()
    assert rows["memorised"].gain is not None
    assert rows["memorised"].gain.mean == pytest.approx(base - rows["memorised"].error)
    memorised[LEVELS == 5] = np.nan
    assert {row.measure for row in foretell({"memorised": memorised}, validation, y, LEVELS)} == {
        "validation accuracy",
        "constant",
    }


def ladder(levels: tuple[float, ...]) -> list[Row]:
    """Runs whose spectra tell early what becomes of them out-of-domain, and whose validation does not."""
    draw = np.random.default_rng(3)
    rows = []
    for noise in levels:
        for seed in range(3):
            end = 0.6 - noise + draw.normal(0, 0.01)
            for step in (40, 80, 160):
                name = f"quickstart-n{round(100 * noise):02d}-seed{seed}"
                selection = {"chosen": 1, "validation": [None, 0.5 + draw.normal(0, 0.1)]}
                rows += [
                    make_row(
                        **{"noise": noise, "repetition": seed, "step": step, "dataset": dataset},
                        **{"encoder": f"{name}@{step}", "accuracy": end, "metric": end},
                        **{"sve": 3 + end + draw.normal(0, 0.001), "lsvr": draw.normal(1, 0.1)},
                        selection=json.dumps(selection),
                        encoder_hash=hashlib.sha256(f"{name} {step}".encode()).hexdigest(),
                    )
                    for dataset in ("digits", "digits-inverted")
                ]
    return rows


def test_the_command_tells_what_the_spectra_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ladder((0.0, 0.05, 0.1, 0.2, 0.3, 0.4))
    write_rows(tmp_path, rows)
    main([str(tmp_path), "--at", "0.5", "--out", str(tmp_path / "foretold.json")])
    shown = capsys.readouterr().out
    assert "quickstart: 18 runs at 0, 5, 10, 20, 30, 40 % noise" in shown
    record = json.loads((tmp_path / "foretold.json").read_text())
    [family] = record["families"]
    assert (family["validation_accuracy"], family["without_early_rows"]) == ("of the heads", [])
    verdicts = {row["measure"]: row["verdict"] for row in family["targets"]["ood"]}
    assert (verdicts["SVE"], verdicts["LSVR"]) == (BETTER, NO_BETTER)
    # Their metrics are not here, and nothing is made up of them.
    assert verdicts.keys() == {"validation accuracy", "constant", "SVE", "LSVR", "early probe"}
    section = foretold.section(foretold.read_foretold(tmp_path / "foretold.json", rows))
    assert "first 50\N{NO-BREAK SPACE}% of its runs" in section.intro
    [table] = section.items
    assert isinstance(table, Table)
    told_of = {(row[1].text, row[2].text): row[-1].text for row in table.rows}
    assert told_of["out-of-domain", "SVE"] == BETTER
    assert told_of["out-of-domain", "LSVR"] == NO_BETTER
    added = dataclasses.replace(rows[0], encoder="another-seed3@40", row_id="0" * 64)
    for found, of in ((rows[1:], rows[0].encoder), ([*rows, added], "another-seed3@40")):
        with pytest.raises(UserError, match=f"json: it was foretold from other rows of {of} than these "):
            foretold.read_foretold(tmp_path / "foretold.json", found)
    (tmp_path / "foretold.json").write_text(json.dumps(record | {"format": "nml-foretold/2"}))
    with pytest.raises(UserError, match="json: format 'nml-foretold/2'; possible: 'nml-foretold/3'; python"):
        foretold.read_foretold(tmp_path / "foretold.json", rows)
    (tmp_path / "foretold.json").write_text(json.dumps(record | {"at": "half"}))
    with pytest.raises(UserError, match="at is 'half'; possible: a file of"):
        foretold.read_foretold(tmp_path / "foretold.json", rows)
    (tmp_path / "foretold.json").write_text(json.dumps({"format": foretold.FORMAT, "at": 0.5}))
    with pytest.raises(UserError, match="json: Document lacks rows, families; possible: a file"):
        foretold.read_foretold(tmp_path / "foretold.json", rows)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        foretold.read_foretold(tmp_path, rows)


def told_of(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """Return what the command says of the only family in some rows."""
    write_rows(folder, rows)
    main([str(folder), "--at", "0.6", "--out", str(folder / "foretold.json")])
    foretold.read_foretold(folder / "foretold.json", rows)
    [family] = json.loads((folder / "foretold.json").read_text())["families"]
    assert isinstance(family, dict)
    return family


def test_runs_are_compared_at_the_same_steps(tmp_path: Path) -> None:
    rows = ladder((0.0, 0.05, 0.1, 0.2, 0.3, 0.4))
    # One has not come to its end yet, and one was measured later than the others while it was early.
    unfinished, ahead = "quickstart-n40-seed0", "quickstart-n00-seed1"
    rows = [row for row in rows if row.encoder != f"{unfinished}@160"]
    rows = [row for row in rows if row.step != 80 or row.encoder.startswith(ahead)]
    runs = early_families(rows, 0.6)[0].runs
    assert {(run.early, run.last) for run in runs} == {(40, 160)}
    assert told_of(tmp_path, rows)["without_early_rows"] == [unfinished]


def test_scores_that_do_not_belong_together_are_in_no_mean(tmp_path: Path) -> None:
    rows = ladder((0.0, 0.05, 0.1, 0.2, 0.3, 0.4))
    expected = early_families(rows, 0.6)[0].runs

    def changed(row: Row, **changes: Any) -> Row:
        return dataclasses.replace(row, row_id="", **changes)

    beside = [
        *(changed(row, created="2025", split_hash="6" * 64, metric=0.9) for row in rows),
        *(changed(row, task="numbers", accuracy=None, metric_name="spearman", metric=0.1) for row in rows),
        *(changed(row, seed=7, metric=math.nan) for row in rows),
        *(changed(row, encoder_kind="tuned", encoder_hash="7" * 64, metric=0.9) for row in rows),
    ]
    assert early_families(beside + rows, 0.6)[0].runs == expected
    # Two tasks may have test sets of one name.
    both = early_families([*rows, *(changed(row, task="others", metric=0.0) for row in rows)], 0.6)[0].runs
    assert [run.final["ood"] for run in both] == pytest.approx([run.final["ood"] / 2 for run in expected])


def test_a_run_whose_validation_accuracy_is_not_told_is_left_out(tmp_path: Path) -> None:
    rows = ladder((0.0, 0.05, 0.1, 0.2, 0.3, 0.4))
    names = [f"quickstart-n40-seed{seed}" for seed in range(3)]
    for name, selection in zip(names, ({}, {"chosen": 0, "validation": [None]}, {"chosen": 3}), strict=True):
        text = json.dumps(selection)
        rows = [
            dataclasses.replace(row, selection=text) if row.encoder.startswith(name) else row for row in rows
        ]
    assert told_of(tmp_path, rows)["without_early_rows"] == names


def test_metrics_that_say_nothing_sensible_are_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "validation", "step": 4, "top1": null}\n')
    rows = [dataclasses.replace(row, run_path=str(tmp_path)) for row in ladder((0.0, 0.1))]
    with pytest.raises(UserError, match=r"metrics.jsonl: does not read: TypeError"):
        early_families(rows, 0.6)


def test_too_few_levels_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, ladder((0.0, 0.1, 0.2, 0.3)))
    main([str(tmp_path)])
    assert "nothing can be said: 4 noise levels" in capsys.readouterr().out
    with pytest.raises(UserError, match="--at 1; possible: a share"):
        main([str(tmp_path), "--at", "1"])
