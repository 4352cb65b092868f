"""Parts in packages of their own are found by their entry points and used like built-in ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run_command

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the examples into a folder of their own, which is put on the path."""
    # A copy: building leaves traces beside the sources.
    source = shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("example") / "source")
    sources = sorted(map(str, source.iterdir()))
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(target), *sources], check=True, capture_output=True)
    return target


def call(*words: str, cwd: Path, site: Path) -> str:
    done = run_command(*words, cwd=cwd, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_head_is_listed_with_its_distribution(tmp_path: Path, site: Path) -> None:
    lines = call("plugins", "list", cwd=tmp_path, site=site).splitlines()
    (line,) = [line for line in lines if line.startswith("prototype ")]
    assert line.split()[1:] == ["nml-prototype-head", "0.1.0", "prototype_head:Prototype"]


def test_the_head_probes_an_encoder(tmp_path: Path, site: Path, make_export: Callable[..., Path]) -> None:
    run = make_export(tmp_path / "runs" / "tiny")
    words = ("probes.run", "--plugin", "prototype", "--checkpoint", str(run))
    printed = call(*words, cwd=tmp_path, site=site)
    assert "prototype" in printed

    from probes.results import read_rows

    rows = read_rows(tmp_path / "results")
    assert {row.domain for row in rows} == {"id", "ood"}
    assert {(row.head_distribution, row.head_version) for row in rows} == {("nml-prototype-head", "0.1.0")}
    assert all(row.accuracy > 0.1 for row in rows if row.domain == "id")


def test_a_head_whose_code_was_changed_is_measured_anew(
    tmp_path: Path, site: Path, make_export: Callable[..., Path]
) -> None:
    from probes.results import read_rows

    run = make_export(tmp_path / "runs" / "tiny")
    words = ("probes.run", "--plugin", "lp,prototype", "--hyper", "lp.epochs=1", "--checkpoint", str(run))
    results = tmp_path / "results"

    def measure() -> tuple[dict[str, float], list[str]]:
        printed = call(*words, cwd=tmp_path, site=site).splitlines()
        rows = read_rows(results)
        said = [line for line in printed if "measured anew" in line]
        return {row.row_id: row.accuracy for row in rows if row.head == "prototype"}, said

    first, said = measure()
    assert (len(first), said) == (5, [])
    source = site / "prototype_head.py"
    text = source.read_text()
    source.write_text(text.replace("features.cpu().float()", "-features.cpu().float()"))
    both, said = measure()
    assert len(both) == 10
    assert first.items() < both.items()
    assert {both[row] for row in both.keys() - first.keys()} != set(first.values())
    (line,) = said
    assert line.startswith("prototype: its results of 20")
    assert "in results are of other code than now; they stay" in line
    source.write_text(text)
    assert measure() == (both, [])


def test_every_example_keeps_its_contract_by_the_kits(tmp_path: Path, site: Path) -> None:
    tests = tmp_path / "tests"
    for example in EXAMPLES.iterdir():
        shutil.copytree(example / "tests", tests, dirs_exist_ok=True)
    printed = call("pytest", "-q", "-p", "no:cacheprovider", str(tests), cwd=tmp_path, site=site)
    assert " passed" in printed
    assert "failed" not in printed
