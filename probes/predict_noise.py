"""``python -m probes.predict_noise``: can what pre-training noise does be told before the end of a run?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import write_json
from nml.text_table import in_columns

if TYPE_CHECKING:
    from probes.reporting.early import Family
    from probes.reporting.foretelling import Foretold

EPILOG = """
examples:
  python -m probes.predict_noise results/
  python -m probes.predict_noise results/ --at 0.5 --out foretold.json
It reads rows from along the training: pretrain.run --probe TASK, or probes.run --checkpoint RUN --steps all.
"""
DOMAINS = {"id": "in-domain", "ood": "out-of-domain"}


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.predict_noise",
        "Tell how well early in-domain measures of runs (spectra, probes, memorisation) tell the scores\n"
        "that runs of an unseen noise level end with, against validation accuracy and a constant.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("results", nargs="?", default="results", type=str, help="results folder of a ladder")
    add("--at", default=0.34, type=float, help="share of a run up to which a measure is early")
    add("--json", action="store_true", help="the same as JSON")
    add("--out", default=None, type=str | None, help="file to write that JSON to")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each family of runs and domain."""
    arguments = build_parser().parse_args(argv)
    if not 0 < arguments.at < 1:
        raise UserError(f"--at {arguments.at:g}", possible="a share above 0 and below 1, for example 0.34")
    # scipy takes a second to import: not before the arguments are known to be right.
    from probes.reporting.early import early_families
    from probes.reporting.sections.foretold import FORMAT, told_from
    from probes.results import read_rows

    rows = read_rows(arguments.results)
    found = [judged(family) for family in early_families(rows, arguments.at)]
    record = {"format": FORMAT, "at": arguments.at, "rows": told_from(rows), "families": found}
    if arguments.out:
        write_json(Path(arguments.out), record)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return
    for family in found:
        _show(family)
    if not found:
        print("no rows of frozen encoders whose pre-training noise is known")


def judged(family: Family) -> dict[str, Any]:
    """Return what can be said of a family of runs, JSON-like; ``reason`` where that is nothing."""
    import numpy as np

    from probes.reporting.foretelling import FEWEST_LEVELS, foretell

    levels = np.array([run.level for run in family.runs])
    record: dict[str, Any] = {
        "encoders": family.name,
        "runs": len(family.runs),
        "levels": sorted(set(levels.tolist())),
        "without_early_rows": list(family.without),
        "validation_accuracy": family.validated,
        "targets": {},
    }
    if len(record["levels"]) < FEWEST_LEVELS:
        count = len(record["levels"])
        record["reason"] = (
            f"{count} noise level{' was' if count == 1 else 's were'} measured early and at the end; "
            f"it takes {FEWEST_LEVELS}, of which one is left out at a time"
        )
        return record
    validation = np.array([run.validation for run in family.runs])
    measures = {
        name: np.array([run.measures[name] for run in family.runs]) for name in family.runs[0].measures
    }
    for domain in family.runs[0].final:
        target = np.array([run.final[domain] for run in family.runs])
        record["targets"][domain] = [_as_json(one) for one in foretell(measures, validation, target, levels)]
    return record


def _as_json(one: Foretold) -> dict[str, Any]:
    gain = one.gain
    return {
        "measure": one.measure,
        "levels": one.levels,
        "error": one.error,
        "gain": None if gain is None else gain.mean,
        "gain_low": None if gain is None else gain.low,
        "gain_high": None if gain is None else gain.high,
        "p_holm": one.p_holm,
        "verdict": one.verdict,
    }


def _show(family: dict[str, Any]) -> None:
    levels = ", ".join(f"{level:g}" for level in family["levels"])
    print(f"{family['encoders']}: {family['runs']} runs" + (f" at {levels} % noise" if levels else ""))
    if family["without_early_rows"]:
        print(
            f"  not measured as the others, early and at the end: {', '.join(family['without_early_rows'])}"
        )
    if "reason" in family:
        print(f"  nothing can be said: {family['reason']}")
    for domain, rows in family["targets"].items():
        print(
            f"\nfinal {DOMAINS[domain]} score of an unseen level, in points "
            f"(validation accuracy: {family['validation_accuracy']})"
        )
        header = ["told from", "levels", "mean error", "smaller by (95 %)", "p (Holm)", "verdict"]
        print("\n".join(in_columns([header, *map(_cells, rows)], text_columns=1)))


def _cells(row: dict[str, Any]) -> list[str]:
    gain = "-" if row["gain"] is None else f"{row['gain']:+.2f}"
    if row["gain_low"] is not None:
        gain += f" ({row['gain_low']:+.2f} to {row['gain_high']:+.2f})"
    p = "-" if row["p_holm"] is None else f"{row['p_holm']:.3f}"
    return [row["measure"], str(row["levels"]), f"{row['error']:.2f}", gain, p, row["verdict"] or "-"]


if __name__ == "__main__":
    run(main)
