"""What a report leaves for programs and papers: CSV, LaTeX, PDF."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from probes import report
from probes.reporting.build import build
from probes.reporting.papers import csv_text, latex_text
from probes.reporting.records import Cell, Table, cells
from probes.results import Row, write_rows
from tests.probes.report_parts import figure, table

MakeRows = Callable[..., list[Row]]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_numbers_that_the_page_rounds_are_whole_in_csv(digits: MakeRows) -> None:
    rows = digits(heads=("lp", "nmtune"), repetitions=(0, 1, 2))
    found = read(csv_text(table(build(rows), "heads-table")))
    line = next(
        one for one in found if (one["Encoders"], one["Head"]) == ("quickstart, 20 % noise", "nmtune")
    )
    runs = [float(line[f"ID minus lp: run {run}"]) for run in (1, 2, 3)]
    assert float(line["ID minus lp"]) == pytest.approx(sum(runs) / 3)
    assert float(line["ID minus lp: low"]) < min(runs) < max(runs) < float(line["ID minus lp: high"])
    assert len(line["ID accuracy"]) > 6
    baseline = next(one for one in found if one["Head"] == "lp")
    assert (baseline["ID minus lp"], baseline["ID minus lp: low"]) == ("baseline", "")


def test_columns_of_csv_have_names_of_their_own(digits: MakeRows) -> None:
    for one in build(digits(fractions=(0.1, 1.0))).tables:
        header = next(csv.reader(io.StringIO(csv_text(one))))
        assert len(header) == len(set(header)), one.name


def test_every_point_of_a_figure_is_in_csv_those_of_curves_too(digits: MakeRows) -> None:
    drawn = build(digits(repetitions=(0, 1)))
    for name in ("accuracy-noise", "spectrum-id-digits"):
        points = [point for _, _, point in figure(drawn, name).marks()]
        lines = read(csv_text(figure(drawn, name).data()))
        assert len(lines) == len(points) > 0
    runs = [
        (line["Each run: 1"], line["Each run: 2"])
        for line in read(csv_text(figure(drawn, "accuracy-noise").data()))
    ]
    assert all(first != second for first, second in runs)


def test_latex_shows_means_with_their_intervals_and_marks(digits: MakeRows) -> None:
    numbers = (("", 1.24), ("low", 0.31), ("high", 2.14))
    text = latex_text(
        Table(
            name="t",
            title="A & B",
            caption="50 % of_it.",
            header=("Head", "Δ"),
            rows=(
                cells("a_b", Cell("+1.2 [+0.3, +2.1]", strong=True, numbers=numbers)),
                cells("c", "−1"),
            ),
        )
    )
    assert r"{\bfseries\boldmath $+1.2$ {\scriptsize$[+0.3, +2.1]$}}" in text
    assert r"\caption{A \& B. 50 \% of\_it.}" in text
    assert r"c & $-$1 \\" in text
    assert "U+0394" in text
    # Deviations on the page, intervals in the paper.
    summary = latex_text(table(build(digits(repetitions=(0, 1, 2))), "summary-table"))
    assert r"\toprule" in summary
    assert "scriptsize$[" in summary
    assert r"$\pm$" not in summary.split(r"\midrule", 1)[1]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, digits_of_two: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    write_rows(folder, digits_of_two)
    report.main([str(folder), "--latex"])
    return folder / "report"


def test_latex_asks_for_a_table_and_a_pdf_of_everything(paper: Path) -> None:
    figures = {file.stem for file in paper.glob("figures/*.png")}
    assert {file.stem for file in paper.glob("figures/*.pdf")} == figures
    assert {"claims-table", "summary-table", "heads-table"} <= {
        file.stem for file in paper.glob("latex/*.tex")
    }
    assert {f"{name}-values" for name in figures} <= {file.stem for file in paper.glob("tables/*.csv")}
    # No date and no producer: equal results give equal bytes.
    assert b"/CreationDate" not in next(paper.glob("figures/*.pdf")).read_bytes()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_pdflatex_takes_every_table_and_figure(paper: Path, tmp_path: Path) -> None:
    parts = [rf"\input{{{file}}}" for file in sorted(paper.glob("latex/*.tex"))]
    parts += [rf"\includegraphics{{{file}}}" for file in sorted(paper.glob("figures/*.pdf"))]
    document = tmp_path / "all.tex"
    packages = r"\usepackage{booktabs}\usepackage{graphicx}"
    body = "\\clearpage\n".join(parts)
    document.write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", document.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_report_without_latex_clears_what_one_with_it_left(paper: Path) -> None:
    report.main([str(paper.parent)])
    assert not list(paper.glob("latex/*")) + list(paper.glob("figures/*.pdf"))
    assert list(paper.glob("tables/*.csv"))
