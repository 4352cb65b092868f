"""What a report shows of which results, and what it names as missing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import pytest

from probes.reporting.build import build
from probes.reporting.records import INTERVAL
from probes.results import Row
from tests.probes.report_parts import figure, table, text

MakeRow = Callable[..., Row]
MakeRows = Callable[..., list[Row]]
LADDER = (0.0, 0.05, 0.1, 0.2, 0.3)


def test_a_whole_study_leaves_nothing_of_the_paper_missing(digits: MakeRows, row: MakeRow) -> None:
    def study(**candidate: object) -> str:
        return json.dumps({"candidates": [candidate]})

    rows = digits(noises=LADDER, fractions=(0.1, 0.5, 1.0), study=study(layers=2))
    rows += digits(noises=LADDER, downstream_noise=0.3, study=study(layers=2))
    rows += digits(noises=LADDER, heads=("mlp",), study=study(layers=4))
    rows += digits(noises=LADDER, heads=("svd", "mse", "cov"))
    public = {"encoder": "timm:resnet50", "encoder_hash": "t", "noise_ratio": None, "run_path": None}
    rows += [row(study=study(layers=2), **public)]
    assert [gap for gap in build(rows).gaps if gap.paper] == []


def test_what_is_missing_is_named_with_the_paper_and_a_command(digits: MakeRows) -> None:
    gaps = build(digits()).gaps
    assert {gap.paper for gap in gaps if gap.paper} == {
        "Fig. 1 and 2",
        "Tables 2 and 3",
        "Fig. 15 and 16",
        "Table 15",
        "Table 16",
    }
    assert all("python -m probes.run --" in gap.command and gap.reason for gap in gaps if gap.paper)
    # What the paper does not have is named as well.
    assert {gap.title for gap in gaps if not gap.paper} == {
        "Monotone trends with the noise",
        "Heads ranked over tasks",
        "Accuracy and spectra along the pre-training",
    }


def test_one_encoder_gives_a_report_of_what_there_is(row: MakeRow) -> None:
    report = build([row()])
    assert text(table(report, "summary-table"))[0][:2] == ["20 %", "lp"]
    assert any(gap.paper == "Fig. 3" for gap in report.gaps)
    assert [item.name for item in report.figures] == ["spectrum-id-digits"]


def test_a_public_encoder_has_no_noise_and_is_compared_all_the_same(digits: MakeRows) -> None:
    rows = digits(noises=(0.0,), encoder="timm:resnet50", noise_ratio=None, noise_level=None, run_path=None)
    report = build(rows)
    assert {line[0] for line in text(table(report, "summary-table"))} == {"–"}
    assert {line[0] for line in text(table(report, "heads-table"))} == {"timm:resnet50"}


def test_the_summary_has_a_line_for_every_noise_level_and_head(digits: MakeRows) -> None:
    lines = text(table(build(digits()), "summary-table"))
    assert [(line[0], line[1]) for line in lines] == [
        (noise, head) for noise in ("0 %", "20 %") for head in ("lp", "mlp", "nmtune")
    ]


def test_one_level_of_downstream_noise_a_head_is_no_figure(digits: MakeRows) -> None:
    report = build([*digits(heads=("lp",)), *digits(heads=("mlp",), downstream_noise=0.3)])
    assert any(gap.paper == "Fig. 15 and 16" for gap in report.gaps)
    assert all(panel.series for item in report.figures for panel in item.panels)


def test_two_families_are_kept_apart_everywhere(digits: MakeRows) -> None:
    rows = digits()
    for noise in (0.0, 0.2):
        name = f"rsb_a3-n{round(100 * noise):02d}-seed0"
        rows += digits(noises=(noise,), encoder=name, encoder_hash=name, run_path=f"/runs/{name}")
    report = build(rows)
    assert {line[0] for line in text(table(report, "summary-table"))} == {"quickstart", "rsb_a3"}
    assert len(figure(report, "accuracy-noise").panels) == 4


def test_every_mean_comes_with_its_runs_and_seeds(digits: MakeRows) -> None:
    report = build(digits(seeds=(0, 1), repetitions=(0, 1, 2)))
    shown = [item for item in report.figures if not item.name.startswith(("spectrum-", "effects-"))]
    assert shown
    assert "N = 3 ladders each" in figure(report, "effects-0").caption
    for item in shown:
        assert "N = 3 pre-training runs each" in item.caption
        (values,) = item.values()
        assert values.header[-2:] == ("Each run", "Seeds")
        assert all(len(row[-2].text.split()) == 3 and row[-1].text == "2" for row in values.rows)
    caption = table(report, "summary-table").caption
    assert "N = 3 pre-training runs each, 2 seeds of the head a run" in caption


def test_bars_of_runs_and_of_seeds_do_not_stand_in_one_figure(digits: MakeRows) -> None:
    single = figure(build(digits()), "accuracy-noise")
    assert "over seeds of the head on one encoder" in single.caption
    assert all(single.bar(point) for _, _, point in single.marks())
    mixed = figure(build([*digits(), *digits(noises=(0.0,), repetitions=(1,))]), "accuracy-noise")
    assert "over pre-training runs" in mixed.caption
    assert [mixed.bar(point) is None for point in mixed.panels[0].series[0].points] == [False, True]


def test_every_picture_has_a_text_of_what_is_seen(digits: MakeRows) -> None:
    for item in build(digits()).figures:
        for panel in item.panels:
            assert panel.alt.endswith(".")
            assert all(series.label in panel.alt for series in panel.series)


def test_spectra_come_in_the_papers_stretches_as_far_as_they_reach(row: MakeRow) -> None:
    long = tuple(1 / (rank + 1) for rank in range(900))
    titles = [
        panel.title for panel in figure(build([row(singular_values=long)]), "spectrum-id-digits").panels
    ]
    assert titles == ["digits, the 20 largest", "digits, ranks 20 to 500", "digits, ranks 500 to 900"]
    short = figure(build([row(singular_values=long[:12])]), "spectrum-id-digits")
    assert [panel.title for panel in short.panels] == ["digits, the 20 largest"]
    assert "too few values" in short.caption


def test_spectra_are_shares_of_their_sum(row: MakeRow) -> None:
    panel = figure(build([row(singular_values=(3.0, 1.0))]), "spectrum-id-digits").panels[0]
    assert [point.y for point in panel.series[0].points] == [75.0, 25.0]


def test_spectra_are_drawn_by_noise_level_and_unknown_encoders_by_name(row: MakeRow) -> None:
    seeds = [
        row(noise=0.2, encoder=f"quickstart-n20-seed{seed}", encoder_hash=str(seed), singular_values=values)
        for seed, values in ((0, (3.0, 1.0)), (1, (1.0, 1.0)))
    ]
    public = row(encoder="timm:resnet18", encoder_hash="t", noise_ratio=None, run_path=None)
    dead = row(encoder="timm:dead", encoder_hash="d", noise_ratio=None, singular_values=(0.0, 0.0))
    panel = figure(build([row(noise=0.0), *seeds, public, dead]), "spectrum-id-digits").panels[0]
    assert [series.label for series in panel.series] == ["0 %", "20 %", "timm:resnet18"]
    assert [point.y for point in panel.series[1].points] == [62.5, 37.5]


def test_a_single_singular_value_is_no_curve_and_is_named(row: MakeRow) -> None:
    collapsed = {"encoder": "timm:flat", "encoder_hash": "f", "noise_ratio": None, "run_path": None}
    narrow = [row(dim=1, singular_values=(3.0,), sve=0.0, lsvr=0.0)]
    report = build(narrow)
    assert report.figures == []
    (gap,) = [gap for gap in report.gaps if gap.paper == "Fig. 11 to 14"]
    assert gap.title == "Spectrum on digits (in-domain)"
    assert gap.reason.startswith("20 %: ")
    assert gap.reason.endswith("one value is no curve")
    flat = row(singular_values=(3.0, *[0.0] * 358), **collapsed)
    drawn = figure(build([row(), flat]), "spectrum-id-digits")
    assert [series.label for series in drawn.panels[0].series] == ["20 %"]
    assert "Not drawn, since one value is no curve: timm:flat." in drawn.caption


def test_ablations_of_nmtune_are_shown_in_their_own_section_only(digits: MakeRows) -> None:
    report = build(digits(heads=("lp", "nmtune", "nmtune-mse", "nmtune-layers1", "nmtune-topk")))
    heads = {line[1] for line in text(table(report, "summary-table"))}
    assert heads == {"lp", "nmtune", "nmtune-topk"}
    assert {"nmtune-mse", "nmtune-layers1"} <= {line[0] for line in text(table(report, "ablations-0"))}
    assert not any(line[0] == "Not in main tables" for line in text(table(report, "definitions")))
    alone = build(digits(heads=("nmtune-mse",)))
    assert {line[1] for line in text(table(alone, "summary-table"))} == {"nmtune-mse"}


def test_data_sets_of_like_names_get_figures_of_their_own(row: MakeRow) -> None:
    rows = [row(task=name, dataset=name) for name in ("a/b", "a?b", "a_b")]
    names = [item.name for item in build(rows).figures]
    assert len(set(names)) == 3


def test_a_quick_start_is_called_one_and_a_study_is_not(digits: MakeRows) -> None:
    assert build(digits()).cautions[0].title == "A quick-start result."
    rows = digits(encoder="rsb_a3-n20-seed0", task="cifar10")
    assert all("quick" not in caution.title.lower() for caution in build(rows).cautions)


def test_one_pre_training_run_a_level_is_said(digits: MakeRows) -> None:
    titles = [caution.title for caution in build(digits()).cautions]
    assert "One pre-training run a noise level." in titles
    again = [
        row
        for noise in (0.0, 0.2)
        for name in [f"quickstart-n{round(100 * noise):02d}-seed1"]
        for row in digits(noises=(noise,), encoder=name, encoder_hash=name, run_path=f"/runs/{name}")
    ]
    titles = [caution.title for caution in build([*digits(), *again]).cautions]
    assert not any("One pre-training run" in title for title in titles)
    titles = [caution.title for caution in build([*digits(noises=(0.0, 0.1, 0.2)), *again]).cautions]
    assert "One pre-training run at 10 % noise." in titles


def test_run_time_counts_every_fit_once(digits: MakeRows) -> None:
    lines = text(table(build(digits()), "run-time-heads"))
    assert [(line[0], line[-1]) for line in lines] == [("lp", "6"), ("mlp", "6"), ("nmtune", "6")]
    assert lines[0][2] == "1.00"
    slow = text(table(build(digits(heads=("lp",), predict_seconds=0.5)), "run-time-heads"))
    assert slow[0][3] == "1,393"


def test_the_report_says_the_svd_convention_and_where_numbers_come_from(digits: MakeRows) -> None:
    rows = digits()
    report = build(rows)
    assert any(
        line[0] == "SVD convention" and line[1].startswith("raw")
        for line in text(table(report, "definitions"))
    )
    encoders = text(table(report, "provenance-encoders"))
    assert {(line[1], line[6]) for line in encoders} == {
        (row.encoder_hash[:12], (row.manifest_sha256 or "")[:12]) for row in rows
    }
    versions = text(table(report, "provenance-versions"))
    assert ["torch", "2.13.0"] in versions
    assert ["Results made", "2026-01-02 03:04 UTC"] in versions


def test_n_counts_pre_training_runs_however_many_shares_and_seeds_there_are(digits: MakeRows) -> None:
    lines = text(table(build(digits(fractions=(0.1, 1.0), repetitions=(0, 1))), "heads-table"))
    counts = {line[0]: line[4] for line in lines if line[1] == "mlp"}
    assert counts == {
        "quickstart, 0 % noise": "2",
        "quickstart, 20 % noise": "2",
        "quickstart, all levels": "4",
        "quickstart, all levels and shares": "4",
    }


def test_the_differences_are_drawn_run_by_run(digits: MakeRows) -> None:
    rows = digits(heads=("lp", "nmtune"), repetitions=(0, 1, 2))
    drawn = figure(build(rows), "heads-differences")
    assert [panel.title for panel in drawn.panels] == ["In-domain", "Out-of-domain"]
    (nmtune,) = drawn.panels[0].series
    wanted = [
        100 * (one.metric - base.metric)
        for one in rows
        for base in rows
        if (one.head, base.head) == ("nmtune", "lp")
        and (one.encoder, one.seed, one.dataset) == (base.encoder, base.seed, "digits")
        and base.dataset == "digits"
        and one.noise_ratio == 0.2
    ]
    means = [statistics.fmean(wanted[start : start + 3]) for start in (0, 3, 6)]
    assert nmtune.points[1].runs == pytest.approx(means)
    assert drawn.bars == INTERVAL


def test_encoders_of_unknown_noise_come_after_the_ladder(digits: MakeRows) -> None:
    public = {"encoder": "timm:resnet50", "encoder_hash": "t", "noise_ratio": None, "run_path": None}
    report = build([*digits(noises=(0.0,), **public), *digits()])
    for name in ("summary-table", "heads-table"):
        assert text(table(report, name))[-1][0] == "timm:resnet50"


def test_a_panel_of_downstream_noise_names_the_family_only_among_several(digits: MakeRows) -> None:
    rows = digits() + digits(downstream_noise=0.3)
    titles = [panel.title for panel in figure(build(rows), "downstream-id").panels]
    assert titles == ["0 % pre-training noise", "20 % pre-training noise"]


def test_seconds_and_rates_are_written_out(digits: MakeRows) -> None:
    (line, _) = text(table(build(digits(feature_seconds=0.5)), "run-time-features"))
    assert line[1:] == ["1,795", "2.5", "718"]
    (line, _) = text(table(build(digits(feature_seconds=0.05)), "run-time-features"))
    assert line[1:] == ["1,795", "0.25", "7,180"]


def test_encoder_and_head_spectra_are_named_apart_in_the_summary(digits: MakeRows) -> None:
    found = table(build(digits()), "summary-table")
    assert found.header[4:] == ("Encoder SVE", "Head SVE", "Encoder LSVR", "Head LSVR")
    lines = {(line[0], line[1]): line[4:] for line in text(found)}
    lp, nmtune = lines["0 %", "lp"], lines["0 %", "nmtune"]
    assert lp[0] == lp[1] == nmtune[0] != nmtune[1]
    assert lp[2] == lp[3] == nmtune[2] != nmtune[3]


def test_a_table_without_shifted_results_does_not_speak_of_them(row: MakeRow) -> None:
    inside = [row(noise=noise, seed=seed) for noise in (0.0, 0.2) for seed in (0, 1)]
    found = table(build(inside), "summary-table")
    assert "OOD accuracy" not in found.header
    assert "SVE and LSVR of in-domain test features" in found.caption
    assert "out-of-domain" not in found.caption
    public = {"encoder": "timm:resnet50", "encoder_hash": "t", "noise_ratio": None, "run_path": None}
    mixed = table(build([*inside, row(dataset="digits-thick", **public), row(**public)]), "summary-table")
    assert "or of in-domain ones where there are no others" in mixed.caption


def test_spectra_of_a_head_that_were_not_measured_are_not_made_up(digits: MakeRows) -> None:
    rows = [*digits(heads=("lp",)), *digits(heads=("nmtune",), head_sve=None, head_lsvr=None)]
    report = build(rows)
    lines = {(line[0], line[1]): line[4:] for line in text(table(report, "summary-table"))}
    assert [cell == "–" for cell in lines["0 %", "nmtune"]] == [False, True, False, True]
    assert "–" not in lines["0 %", "lp"]
    labels = {
        series.label for panel in figure(report, "head-spectra-accuracy").panels for series in panel.series
    }
    assert labels == {"lp"}


def test_probabilities_are_judged_where_they_were_measured(digits: MakeRows) -> None:
    measured = digits(nll=0.25, ece=0.02)
    report = build(measured)
    shown = table(report, "calibration-table")
    assert shown.header == ("Noise", "Head", "ID NLL", "ID ECE", "OOD NLL", "OOD ECE")
    assert len(shown.rows) == 2 * 3
    assert [cell.split()[0] for cell in text(shown)[0]] == ["0", "lp", "0.25", "2.0", "0.25", "2.0"]
    # Rows from before have none, and no table is made of them.
    assert "calibration-table" not in {item.name for item in build(digits()).tables}
    mixed = build(digits(heads=("lp",)) + digits(heads=("mlp",), nll=0.25, ece=0.02, downstream_noise=0.0))
    assert {line[1] for line in text(table(mixed, "calibration-table"))} == {"mlp"}


def test_without_out_of_domain_data_nothing_is_said_of_it(digits: MakeRows) -> None:
    inside = [row for row in digits(noises=LADDER, repetitions=(0, 1)) if row.domain == "id"]
    report = build(inside)
    # The claims of the paper are listed whatever there is; the others are of what was measured.
    for shown in [shown for shown in report.tables if shown.name != "claims-table"]:
        said = " ".join([shown.caption, *shown.header, *(cell for line in text(shown) for cell in line)])
        assert "LSVR, out-of-domain" not in said, shown.name
        assert "LSVR of out-of-domain" not in said, shown.name
    for drawn in report.figures:
        assert not any("out-of-domain" in panel.title.lower() for panel in drawn.panels), drawn.name
