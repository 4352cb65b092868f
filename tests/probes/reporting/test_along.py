"""Results of several checkpoints of a run: a section of their own, and no word in any other."""

from __future__ import annotations

import hashlib
from typing import Any

from probes.reporting.build import build
from probes.reporting.records import Figure, Gap, Report, Section, Table
from probes.results import Row
from tests.probes.reporting.made_up import make_row

STEPS = (40, 80, 160)


def at_step(noise: float, repetition: int, step: int, dataset: str, **changes: Any) -> Row:
    name = f"quickstart-n{round(100 * noise):02d}-seed{repetition}"
    value = 0.5 + step / 400 - noise * step / 800 - 0.2 * (dataset != "digits")
    return make_row(
        **{"noise": noise, "repetition": repetition, "dataset": dataset, "step": step, "epoch": step / 20},
        **{"encoder": f"{name}@{step}", "accuracy": value, "metric": value, "sve": 3 + step / 100},
        encoder_hash=hashlib.sha256(f"{name} {step}".encode()).hexdigest(),
        **changes,
    )


def rows_of(steps: tuple[int, ...]) -> list[Row]:
    return [
        at_step(noise, repetition, step, dataset)
        for noise in (0.0, 0.2)
        for repetition in (0, 1)
        for step in steps
        for dataset in ("digits", "digits-inverted")
    ]


def along(report: Report) -> Section:
    return next(section for section in report.sections if section.name == "along")


def test_accuracy_and_spectra_are_drawn_over_the_epochs_by_noise_level() -> None:
    found = along(build(rows_of(STEPS)))
    figure, inside, outside = found.items
    assert isinstance(figure, Figure)
    assert [panel.title for panel in figure.panels] == [
        *("In-domain, lp", "Out-of-domain, lp", "Encoder SVE, in-domain", "Encoder LSVR, out-of-domain"),
    ]
    for panel, values in zip(figure.panels[:3:2], [(60.0, 70.0, 90.0), (3.4, 3.8, 4.6)], strict=True):
        assert [series.label for series in panel.series] == ["0 %", "20 %"]
        points = panel.series[0].points
        assert [point.x for point in points] == [2, 4, 8]
        assert [round(point.y, 6) for point in points] == list(values)
        assert all(len(point.runs) == 2 for point in points)
    assert isinstance(inside, Table)
    assert inside.header == ("Noise", "Epoch 2", "Epoch 4", "Epoch 8")
    assert [[cell.text for cell in row] for row in inside.rows] == [
        ["0 %", "60.0 ± 0.0", "70.0 ± 0.0", "90.0 ± 0.0"],
        ["20 %", "59.0 ± 0.0", "68.0 ± 0.0", "86.0 ± 0.0"],
    ]
    assert isinstance(outside, Table)


def test_other_sections_are_those_of_the_last_steps_alone() -> None:
    several, last = build(rows_of(STEPS)), build(rows_of(STEPS[-1:]))
    for one, other in zip(several.sections, last.sections, strict=True):
        if one.name not in ("along", "method"):
            assert one == other
    (gap,) = along(last).items
    assert isinstance(gap, Gap)
    assert "--steps all" in gap.command


def test_tasks_and_heads_of_the_last_step_alone_do_not_hide_the_steps_before_it() -> None:
    more = [
        at_step(noise, repetition, STEPS[-1], dataset, **changes)
        for noise in (0.0, 0.2)
        for repetition in (0, 1)
        for dataset in ("digits", "digits-inverted")
        for changes in ({"task": "letters"}, {"head": "mlp"}, {"fraction": 0.1})
    ]
    alone, found = along(build(rows_of(STEPS))), along(build([*rows_of(STEPS), *more]))
    assert found == alone
    figure = found.items[0]
    assert isinstance(figure, Figure)
    assert "100 % of the training data of digits" in figure.caption


def test_rows_from_before_epochs_were_recorded_are_drawn_over_their_steps() -> None:
    old = [at_step(0.2, 0, step, "digits", **{}) for step in STEPS]
    import dataclasses

    report = build([dataclasses.replace(row, epoch=None) for row in old])
    figure = along(report).items[0]
    assert isinstance(figure, Figure)
    assert figure.panels[0].x_label == "Step"
    assert [point.x for point in figure.panels[0].series[0].points] == list(STEPS)


def test_ladders_of_several_widths_make_a_map_of_noise_and_width() -> None:
    wide = [
        make_row(
            noise=noise, encoder=f"wide-n{round(100 * noise):02d}-seed0", dim=4096, encoder_hash=f"w{noise}"
        )
        for noise in (0.0, 0.2)
    ]
    narrow = [make_row(noise=noise) for noise in (0.0, 0.2)]
    tables = [item for item in along(build([*narrow, *wide])).items if isinstance(item, Table)]
    assert [table.name for table in tables] == ["width-id"]
    assert tables[0].header == ("Noise", "quickstart (D = 2048)", "wide (D = 4096)")
