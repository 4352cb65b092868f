"""``python -m probes.report``: the paper's figures and tables from a results folder.

The page is one self-contained file; Markdown, the figures as PNG and SVG, every number as CSV and the paper's
claims as JSON lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from nml.cli import Parser, is_interactive, run
from nml.errors import UserError
from probes.results import read_rows

EPILOG = """
examples:
  python -m probes.report                              # results/ -> results/report/report.html
  python -m probes.report results/ --out paper/report
  python -m probes.report results/ --svd row-centred
  python -m probes.report results/ --metric spearman --out results/report-spearman
  python -m probes.report results/ --latex             # booktabs tables and PDF figures beside the page
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.report",
        "Report a results folder: report.html (self-contained), report.md, claims.json, figures/ as PNG and "
        "SVG, tables/ as CSV.\n"
        "What the results cannot fill is named, with the command that would fill it.",
        epilog=EPILOG,
    )
    parser.add_argument("results", nargs="?", default="results", type=str, help="results folder")
    parser.add_argument(
        "--out", default=None, type=str | None, help="folder of the report (default: RESULTS/report)"
    )
    parser.add_argument(
        "--svd",
        default=None,
        type=str | None,
        help="spectra to report where results have several: raw, row-centred, column-centred (default: raw)",
    )
    parser.add_argument(
        "--metric",
        default=None,
        type=str | None,
        help="what to report where results have several, of which no mean is taken: accuracy (with the other "
        "metrics of single classes), map, spearman, pearson (default: accuracy)",
    )
    parser.add_argument(
        "--margin",
        default=0.5,
        type=float,
        help="percentage points of accuracy below which a difference counts as no effect, once shown by test",
    )
    parser.add_argument(
        "--spectrum-margin", default=0.05, type=float, help="the same for SVE and LSVR, in nats"
    )
    parser.add_argument(
        "--foretold",
        default=None,
        type=str | None,
        help="file of python -m probes.predict_noise --out FILE, for a section of it",
    )
    parser.add_argument(
        "--latex",
        action="store_true",
        help="also tables for LaTeX (booktabs), means with their intervals, and figures as PDF",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the report, print its first table and where it is."""
    arguments = build_parser().parse_args(argv)
    for name, margin in (("margin", arguments.margin), ("spectrum-margin", arguments.spectrum_margin)):
        if not margin > 0:
            raise UserError(f"--{name} {margin:g}", possible="a number above 0")
    # matplotlib and scipy take a second to import: not before the arguments are known to be right.
    from probes.reporting.build import build
    from probes.reporting.claims import Margins
    from probes.reporting.render import check_output, table_text, write_report
    from probes.reporting.sections.foretold import read_foretold
    from probes.reporting.sections.summary import SUMMARY
    from probes.results.row import spectra_note

    folder = Path(arguments.out) if arguments.out else Path(arguments.results) / "report"
    rows = read_rows(arguments.results)
    foretold = read_foretold(Path(arguments.foretold), rows) if arguments.foretold else None
    check_output(folder)
    report = build(
        rows,
        convention=arguments.svd,
        metric=arguments.metric,
        margins=Margins(points=arguments.margin, nats=arguments.spectrum_margin),
        foretold=foretold,
    )
    figures = tqdm(report.figures, desc="figures", unit="figure", disable=not is_interactive())
    page = write_report(report, folder, figures, latex=arguments.latex)
    print(table_text(next(table for table in report.tables if table.name == SUMMARY)))
    shifted = {row.encoder_hash: False for row in rows}
    shifted |= {row.encoder_hash: True for row in rows if row.domain == "ood"}
    print(f"\n{spectra_note(shifted.values())}")
    for note in report.left_out:
        print(f"note: {note}")
    missing = [gap for gap in report.gaps if gap.paper]
    if missing:
        print(f"{len(missing)} of the paper's figures and tables are missing; the report says what to run")
    print(f"report: {page}")


if __name__ == "__main__":
    run(main)
