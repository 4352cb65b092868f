"""What stands in one mean where runs, heads and tasks do not match, and what is named as left out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

from probes.reporting.build import build
from probes.reporting.records import Report
from probes.results import Row
from tests.probes.report_parts import figure, table, text

MakeRow = Callable[..., Row]
MakeRows = Callable[..., list[Row]]


def on_task(row: MakeRow, task: str, heads: tuple[str, ...] = ("lp", "mlp"), **changes: object) -> list[Row]:
    return [
        row(noise=noise, head=head, seed=seed, task=task, dataset=task, **changes)
        for noise in (0.0, 0.2)
        for head in heads
        for seed in (0, 1)
    ]


def beside(report: Report) -> list[str]:
    return [line[1] for line in text(table(report, "definitions")) if line[0] == "Not in main tables"]


def one_task_at_one_level_only(digits: MakeRows, *heads: str) -> list[Row]:
    levels = (0.0, 0.1, 0.2)
    rows = [one for task in "ab" for one in digits(noises=levels, heads=heads, task=task)]
    rows = [dataclasses.replace(one, row_id="", dataset=one.task, domain="id") for one in rows]
    # Of these, whole levels would vanish from a mean of runs that have every task.
    lone = [
        dataclasses.replace(one, row_id="", task="c", dataset="c") for one in rows if one.noise_ratio == 0
    ]
    return list({one.row_id: one for one in (*rows, *lone)}.values())


def mean_of(rows: list[Row], head: str, tasks: str) -> float:
    return 100 * statistics.fmean(one.metric for one in rows if one.head == head and one.task in tasks)


def test_nothing_measured_goes_missing_in_silence(digits: MakeRows) -> None:
    rows = [*digits(heads=("lp", "mlp")), *digits(heads=("nmtune",), fractions=(0.1,))]
    report = build(rows)
    assert {line[1] for line in text(table(report, "summary-table"))} == {"lp", "mlp"}
    beside = next(line[1] for line in text(table(report, "definitions")) if line[0] == "Not in main tables")
    assert "nmtune on quickstart-n20-seed0" in beside


def test_a_head_that_lacks_a_task_of_the_others_is_named_with_the_reason(row: MakeRow) -> None:
    rows = [*on_task(row, "a"), *on_task(row, "b"), *on_task(row, "c"), *on_task(row, "a", ("nmtune",))]
    report = build(rows)
    assert {line[1] for line in text(table(report, "summary-table"))} == {"lp", "mlp"}
    assert beside(report) == [
        "nmtune on quickstart, 0 % and 20 % noise: no run has all the tasks that the other means are over "
        "(a, b and c)."
    ]
    assert "Left out: nmtune (quickstart, 0 % noise)" in table(report, "heads-table").caption


def test_captions_name_the_tasks_that_were_averaged_and_the_method_the_others(row: MakeRow) -> None:
    lone = [one for one in on_task(row, "c") if one.noise_ratio == 0]
    shifted = [dataclasses.replace(one, row_id="", dataset="c-thick", domain="ood") for one in lone]
    rows = [*on_task(row, "a"), *on_task(row, "b"), *lone]
    report = build(rows)
    assert "mean over a and b ±" in table(report, "summary-table").caption
    assert figure(report, "accuracy-noise").caption.startswith(
        "Heads fitted on 100 % of the training data of a and b."
    )
    assert beside(report) == [
        "c on quickstart: not every head and noise level that is compared has results; the means are over "
        "a and b."
    ]
    outside = build([*rows, *shifted])
    assert "mean over a and b, out of domain over c, ±" in table(outside, "summary-table").caption
    assert beside(outside)[0].startswith("In-domain: c on quickstart")


def test_a_summary_without_a_mean_says_so(row: MakeRow) -> None:
    apart = [row(task="a", dataset="a", seed=0), row(task="b", dataset="b", seed=1)]
    for rows in (apart, on_task(row, "a", downstream_noise=0.3)):
        assert "mean over no task ±" in table(build(rows), "summary-table").caption


def test_a_task_run_at_a_smaller_share_only_is_shown_with_its_share(row: MakeRow) -> None:
    report = build([*on_task(row, "a"), *on_task(row, "b", fraction=0.5)])
    assert {line[0] for line in text(table(report, "datasets-id-table"))} == {"a", "b"}
    assert [panel.title for panel in figure(report, "datasets-id").panels] == ["a", "b"]
    shares = "100 % of a and 50 % of b (shares of the training data)"
    assert shares in figure(report, "accuracy-noise").caption
    assert shares in table(report, "summary-table").caption
    # Every fit has both tasks at the same shares: the deviation is of seeds, not of shares.
    assert "(" in text(table(report, "heads-table"))[0][2]
    assert {line[-1] for line in text(table(report, "run-time-heads"))} == {"8"}


def test_no_figure_is_without_panels(row: MakeRow) -> None:
    public = {"encoder": "timm:resnet50", "encoder_hash": "t", "noise_ratio": None, "run_path": None}
    studies = {
        "Accuracy against noise at several shares of the training data": [
            *on_task(row, "a"),
            *on_task(row, "b", fraction=0.5),
        ],
        "Accuracy against pre-training noise, by head": on_task(row, "a", downstream_noise=0.3),
        "Table 15": [*on_task(row, "a"), row(task="a", dataset="a-thick", **public)],
    }
    for missing, rows in studies.items():
        report = build(rows)
        assert any(missing in (gap.title, gap.paper) for gap in report.gaps)
        assert all(item.panels for item in report.figures)


def test_a_mean_over_levels_or_shares_leaves_out_heads_that_lack_some(digits: MakeRows) -> None:
    rows = digits(fractions=(0.1, 1.0))
    rows += digits(heads=("bss",))
    rows += digits(heads=("knn",), noises=(0.2,))
    heads: dict[str, list[str]] = {}
    for line in text(table(build(rows), "heads-table")):
        heads.setdefault(line[0], []).append(line[1])
    paper = ["lp", "mlp", "nmtune"]
    assert heads["quickstart, 20 % noise"] == [*paper, "bss", "knn"]
    assert heads["quickstart, all levels"] == [*paper, "bss"]
    assert heads["quickstart, all levels and shares"] == paper


def test_a_mean_over_all_levels_is_over_all_levels_and_so_is_its_difference(digits: MakeRows) -> None:
    rows = one_task_at_one_level_only(digits, "lp", "nmtune")
    found = table(build(rows), "heads-table")
    lp, nmtune = [line for line in text(found) if line[0] == "quickstart, all levels"]
    assert lp[2] == f"{mean_of(rows, 'lp', 'ab'):.1f}"
    assert nmtune[2] == f"{mean_of(rows, 'nmtune', 'ab'):.1f}"
    assert nmtune[3].startswith(f"{mean_of(rows, 'nmtune', 'ab') - mean_of(rows, 'lp', 'ab'):+.1f}")
    assert nmtune[4] == "3"
    assert "Left out: c (quickstart, all levels)." in found.caption


def test_a_mean_of_further_heads_is_over_all_levels_and_so_is_its_difference(digits: MakeRows) -> None:
    rows = one_task_at_one_level_only(digits, "lp", "nmtune-mse")
    found = table(build(rows), "ablations-0")
    lines = {line[0]: line for line in text(found)}
    ours, base = mean_of(rows, "nmtune-mse", "ab"), mean_of(rows, "lp", "ab")
    assert (lines["lp"][1], lines["nmtune-mse"][1]) == (f"{base:.1f}", f"{ours:.1f}")
    assert lines["nmtune-mse"][2].startswith(f"{ours - base:+.1f}")
    assert "Left out, since some runs lack it: c." in found.caption


def test_further_heads_are_averaged_over_the_runs_they_are_paired_on(digits: MakeRows) -> None:
    rows = digits(heads=("nmtune-mse",), seeds=(0, 1, 2)) + digits(heads=("lp",), seeds=(0, 1))
    rows += digits(heads=("mlp",), seeds=(0,))
    found = table(build(rows), "ablations-0")
    assert [line[0] for line in text(found)] == ["lp", "nmtune-mse"]
    assert "N = 2 pre-training runs each, 2 seeds of the head a run" in found.caption
    assert "Left out, since some runs lack it: mlp." in found.caption


def test_further_heads_without_a_task_in_common_are_named_as_missing(row: MakeRow) -> None:
    rows = [row(head="nmtune-mse", noise=0.0, task="a", dataset="a")]
    rows += [row(head="nmtune-mse", noise=0.2, task="b", dataset="b")]
    gaps = [gap for gap in build(rows).gaps if gap.title == "nmtune-mse on quickstart"]
    assert ["no task was run with every encoder" in gap.reason for gap in gaps] == [True]


def test_ablations_over_unlike_cases_are_tables_of_their_own(digits: MakeRows) -> None:
    rows = digits(fractions=(0.1, 1.0))
    rows += digits(heads=("nmtune-mse", "nmtune-cov"), fractions=(0.1,)) + digits(heads=("knn",))
    tables = [item for item in build(rows).tables if item.name.startswith("ablations-")]
    paper = ["lp", "mlp", "nmtune"]
    assert [[line[0] for line in text(item)] for item in tables] == [
        [*paper, "knn"],
        [*paper, "nmtune-cov", "nmtune-mse"],
    ]
    assert [share in item.caption for item, share in zip(tables, ("on 100 %", "on 10 %"), strict=True)] == [
        True,
        True,
    ]
