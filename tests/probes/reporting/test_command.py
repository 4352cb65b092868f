"""``python -m probes.report`` as a user meets it."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nml.errors import UserError
from probes import report
from probes.results import Row, write_rows
from tests.commands import run_command


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("probes.report", *arguments, cwd=cwd)


def test_the_command_prints_the_table_and_the_path(results: Path) -> None:
    done = command("results/", "--out", "report here", cwd=results.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = next(line for line in lines if line.startswith("Noise"))
    assert [name.strip() for name in header.split("  ") if name.strip()] == [
        "Noise",
        "Head",
        "ID accuracy",
        "OOD accuracy",
        "Encoder SVE",
        "Head SVE",
        "Encoder LSVR",
        "Head LSVR",
    ]
    body = [line for line in lines if line.startswith(("0 %", "20 %"))]
    assert [line.split()[2] for line in body] == ["lp", "mlp", "nmtune"] * 2
    assert len(set(body)) == 6
    assert lines[-1] == "report: report here/report.html"
    assert (results.parent / "report here" / "report.html").is_file()


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report."""
    folder = tmp_path_factory.mktemp("report") / "of results"
    report.main([str(results), "--out", str(folder)])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_every_figure_is_written_as_png_and_svg_and_shown_in_both_texts(written: Path) -> None:
    pngs, svgs = (sorted(file.stem for file in written.glob(f"figures/*.{kind}")) for kind in ("png", "svg"))
    assert pngs == svgs
    assert {"accuracy-noise", "head-spectra-accuracy", "datasets-ood", "spectrum-id-digits"} <= set(pngs)
    text, page = (written / "report.md").read_text(), (written / "report.html").read_text()
    assert all(f"](figures/{name}.png)" in text and f'id="{name}"' in page for name in pngs)


def test_a_second_report_gives_the_same_bytes_and_clears_figures_of_before(
    results: Path, written: Path
) -> None:
    before = contents(written)
    (written / "figures" / "of-before.png").write_bytes(b"")
    report.main([str(results), "--out", str(written)])
    assert contents(written) == before


def test_a_folder_with_other_files_is_not_written_to(results: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds files but no report\.html"):
        report.main([str(results), "--out", str(other)])
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]


def test_no_results_is_one_line_with_the_mend(tmp_path: Path) -> None:
    done = command("nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "python -m probes.run" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_svd_convention_names_those_there(results: Path) -> None:
    with pytest.raises(UserError, match=r"row-centered.*possible: raw"):
        report.main([str(results), "--svd", "row-centered"])


def test_names_of_others_are_text_and_never_markup(row: Callable[..., Row], tmp_path: Path) -> None:
    name = "<script>alert('x')</script>&\"|`"
    write_rows(
        tmp_path,
        [
            dataclasses.replace(row(noise=noise, dataset=name, task=name), encoder=name)
            for noise in (0.0, 0.2)
        ],
    )
    report.main([str(tmp_path)])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in (tmp_path / "report" / "report.md").read_text()


def test_rows_that_are_left_out_are_told_on_the_terminal_too(
    tmp_path: Path, row: Callable[..., Row], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(task_revision=revision, created=f"2026-01-0{revision}") for revision in "12"]
    write_rows(tmp_path / "results", rows)
    report.main([str(tmp_path / "results")])
    assert "\nnote: 1 row of an older revision or split of digits left out.\n" in capsys.readouterr().out
