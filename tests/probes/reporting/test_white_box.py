"""Fine-tuned encoders in a report: beside the heads in a section of their own, and nowhere among them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import pytest
from scipy import stats

from nml.errors import UserError
from probes.reporting.build import build
from probes.results import Row
from tests.probes.report_parts import table, text

MakeRows = Callable[..., list[Row]]
REPETITIONS = (0, 1, 2)


@pytest.fixture
def frozen(digits: MakeRows) -> list[Row]:
    return digits(noises=(0.2,), heads=("lp", "mlp"), seeds=(0, 1), repetitions=REPETITIONS)


@pytest.fixture
def tuned(digits: MakeRows) -> list[Row]:
    def rows(head: str, **changes: object) -> list[Row]:
        return digits(
            noises=(0.2,),
            heads=(head,),
            seeds=(0, 1),
            repetitions=REPETITIONS,
            trained_parameters=23_000_000,
            fit_seconds=90.0,
            peak_memory=3 << 30,
            **changes,
        )

    def at(share: float) -> list[Row]:
        settings = {"wise_ft": share}
        study, chosen = json.dumps({"candidates": [settings]}), json.dumps(settings)
        return rows("tune-lp-ft", method="lp-ft", study=study, hyper_parameters=chosen)

    # Of fewer rows, and so a variant of the one with most.
    return [*at(1.0), *at(0.5)[:10]]


def test_tuned_encoders_stand_beside_heads_with_paired_intervals_and_costs(
    frozen: list[Row], tuned: list[Row]
) -> None:
    shown = table(build([*frozen, *tuned]), "white-box-table")
    lines = {line[1]: dict(zip(shown.header, line, strict=True)) for line in text(shown)}
    assert list(lines) == ["lp", "mlp", "lp-ft", "lp-ft (WiSE-FT 0.5)"]
    assert [line["Box"] for line in lines.values()] == ["black", "black", "white", "white"]

    def of(head: str, encoder: str, domain: str) -> float:
        found = [
            row.metric
            for row in [*frozen, *tuned[: len(tuned) - 10]]
            if (row.head, row.encoder_hash, row.domain) == (head, encoder, domain)
        ]
        return statistics.fmean(found)

    encoders = dict.fromkeys(row.encoder_hash for row in frozen)
    changes = [100 * (of("tune-lp-ft", one, "ood") - of("lp", one, "ood")) for one in encoders]
    low, high = stats.ttest_1samp(changes, 0.0).confidence_interval(0.95)
    cell = dict(zip(shown.header, shown.rows[2], strict=True))["OOD minus lp"]
    numbers = dict(cell.numbers)
    assert numbers[""] == pytest.approx(statistics.fmean(changes))
    assert (numbers["low"], numbers["high"]) == (pytest.approx(low), pytest.approx(high))
    assert [lines["lp-ft"][name] for name in ("Runs", "Trained", "Fit (s)", "Memory (MB)", "Tries")] == [
        *("3", "23,000,000", "90.0", "3,072", "1")
    ]
    assert lines["lp"]["Memory (MB)"] == "–"


def test_no_other_section_sees_a_tuned_encoder(frozen: list[Row], tuned: list[Row]) -> None:
    alone, beside = build(frozen), build([*frozen, *tuned])
    kept = [section for section in beside.sections if section.name not in ("white-box", "method")]
    assert kept == [section for section in alone.sections if section.name != "method"]
    assert (alone.lead, alone.cautions, alone.documents) == (beside.lead, beside.cautions, beside.documents)
    assert "white-box" not in {section.name for section in alone.sections}


def test_results_of_tuned_encoders_alone_are_refused(tuned: list[Row]) -> None:
    with pytest.raises(UserError, match="of fine-tuned encoders alone"):
        build(tuned)
