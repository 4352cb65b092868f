"""The curves of the runs behind the results, where their folders are still there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from probes.reporting.build import build
from probes.reporting.records import Report, Section
from probes.results import Row
from tests.probes.report_parts import figure, table, text

MakeRow = Callable[..., Row]


def make_run(run: Path, loss: float) -> str:
    """Write the metrics of a run of 400 steps, which spent half of its time on nothing; return its path."""
    run.mkdir()
    lines = []
    for step in range(1, 401):
        books = {"useful_s": 1.0 * step, "lost_s": {"startup": 0.0, "a_new_cause": 1.0 * step}}
        values = {"epoch": step / 100, "loss": loss / step, "lr": 0.1, "samples_per_s": 640.0}
        lines.append({"event": "step", "step": step, **values, **books})
    lines.append({"event": "validation", "step": 400, "top1": 0.75, "top5": 0.9, **books})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(run)


def section(report: Report) -> Section:
    (found,) = (one for one in report.sections if one.name == "pretraining")
    return found


def test_runs_are_drawn_by_noise_level_and_named_once_a_level(row: MakeRow, tmp_path: Path) -> None:
    rows = [
        row(noise=noise, repetition=seed, run_path=make_run(tmp_path / f"n{noise}-{seed}", 3 + noise))
        for noise in (0.2, 0.0)
        for seed in (0, 1)
    ]
    report = build([*rows, *rows])
    loss, validation, rate, throughput = figure(report, "pretraining-0").panels
    assert [series.label for series in loss.series] == ["0 %", "", "20 %", ""]
    assert [series.slot for series in loss.series] == [0, 0, 1, 1]
    assert (loss.log_y, rate.log_y) == (True, False)
    assert validation.series[0].points[-1].x == 4
    assert validation.series[0].points[-1].y == 75
    assert max(len(series.points) for panel in (loss, rate, throughput) for series in panel.series) <= 150
    lines = text(table(report, "pretraining-time"))
    assert lines[0] == ["n0.0-0", "0 %", "400, not finished", "800", "640", "75.0", "50.0", "50.0"]
    assert [line[0] for line in lines] == ["n0.0-0", "n0.0-1", "n0.2-0", "n0.2-1"]
    assert table(report, "pretraining-time").header[-2:] == ("Training", "A new cause")


def test_runs_that_are_gone_are_named_and_the_others_drawn(row: MakeRow, tmp_path: Path) -> None:
    there = row(noise=0.0, run_path=make_run(tmp_path / "there", 3.0))
    gone = row(noise=0.2, run_path=str(tmp_path / "gone"))
    found = section(build([there, gone]))
    assert found.intro.endswith(f"of {tmp_path}/gone no metrics are left.")
    assert [item.name for item in found.items] == ["pretraining-0", "pretraining-time"]
    assert section(build([gone])).items == ()
    public = row(encoder="timm:resnet50", noise_ratio=None, run_path=None)
    assert section(build([public])).intro == "No curves: no encoder is from a run of this project."
