"""A study in which nothing has an effect: what the report says of it, to the digit.

Where a change of the statistics is wanted, ``python -m tests.probes.reporting.test_null_study`` writes the
golden file anew; what changed in it and why belongs into CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from probes.reporting.build import build
from probes.reporting.records import Report
from probes.reporting.render import table_text
from tests.probes.reporting.made_up import HEADS, make_row

GOLDEN = Path(__file__).parent / "golden" / "null_study.json"
TABLES = ("claims-table", "summary-table", "effects-0-changes", "effects-0-trends", "heads-table")
# Deviations: of a run, of a head on a run, of a fit; of a run's spectra in nats.
SEED = 1
RUN, WHIM, FIT, NATS = 0.02, 0.005, 0.003, 0.1


def null_report() -> Report:
    """Return the report of 3 levels x 3 runs x 3 heads x 2 seeds, all luck and no effect."""
    # In one study of twenty a difference is marked by luck, as asked for (test_errors); not in this one.
    luck = np.random.default_rng(SEED)
    rows = []
    for noise in (0.0, 0.05, 0.2):
        for run in range(3):
            base, spectrum = luck.normal(0.7, RUN), luck.normal(3, NATS)
            for head in HEADS:
                suits = base + (head != "lp") * luck.normal(0, WHIM)
                for seed in (0, 1):
                    for dataset in ("digits", "digits-thick"):
                        made = make_row(noise=noise, repetition=run, head=head, seed=seed, dataset=dataset)
                        found = float(suits + luck.normal(0, FIT))
                        spectra = dict.fromkeys(("sve", "lsvr", "head_sve", "head_lsvr"), spectrum)
                        rows.append(dataclasses.replace(made, accuracy=found, metric=found, **spectra))
    return build(rows)


def told(report: Report) -> dict[str, Any]:
    """Return the claims of a report as JSON has them, and what its tables of effects show."""
    claims = json.loads(dict(report.documents)["claims.json"])
    tables = {table.name: table_text(table).splitlines() for table in report.tables if table.name in TABLES}
    strong = [
        f"{table.name}: {cell.text}"
        for table in report.tables
        for row in table.rows
        for cell in row
        if getattr(cell, "strong", False)
    ]
    return {"claims": _rounded(claims), "marked": strong, **tables}


def _rounded(value: Any) -> Any:
    # Libraries of linear algebra differ in the last digits.
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def test_a_study_without_effects_is_told_as_one() -> None:
    found = told(null_report())
    assert found == json.loads(GOLDEN.read_text())
    said = {claim["name"]: claim["verdict"] for claim in found["claims"]["claims"]}
    assert set(said.values()) == {"undecided", "too few runs"}
    assert found["marked"] == []
    assert all(claim["detectable"] for claim in found["claims"]["claims"] if claim["verdict"] == "undecided")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(told(null_report()), indent=1) + "\n")
