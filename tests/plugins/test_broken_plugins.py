"""With every kind of broken plugin installed, commands work and say what is wrong, and whose."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from plugins.lp import LinearProbe
from plugins.registry import contract_fault
from tests.commands import run_command

NAMES = ("exiting", "gone", "lacking", "raising", "twin")
# What a message about each must name: the distributions, and what is wrong.
BLAMED = {
    "exiting": ("exiting-heads 3.1", "SystemExit"),
    "gone": ("gone-heads 3.1", "package_that_is_gone"),
    "lacking": ("lacking-heads 3.1", "transform()"),
    "raising": ("raising-heads 3.1", "RuntimeError: no licence"),
    "twin": ("first-heads 3.1", "second-heads 3.1"),
}
FOUND_WITHOUT_IMPORT = {"gone", "twin"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def install(site: Path, distribution: str, name: str, module: str, source: str | None = None) -> None:
    """Leave what pip leaves of a distribution, and its module if there is one."""
    info = site / f"{distribution.replace('-', '_')}-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(f"[nml.heads]\n{name} = {module}:Head\n")
    if source is not None:
        (site / f"{module}.py").write_text(source)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "raising-heads", "raising", "raising_heads", "raise RuntimeError('no licence')")
    install(folder, "exiting-heads", "exiting", "exiting_heads", "import sys\nsys.exit(1)")
    install(folder, "lacking-heads", "lacking", "lacking_heads", "class Head:\n    def fit(self): ...")
    install(folder, "gone-heads", "gone", "package_that_is_gone")
    install(folder, "first-heads", "twin", "first_heads", "from plugins.lp import LinearProbe as Head")
    install(folder, "second-heads", "twin", "second_heads", "from plugins.lp import LinearProbe as Head")
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    def call(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run_command(module, *words, cwd=tmp_path, PYTHONPATH=str(site))

    return call


def warned(lines: Sequence[str], name: str) -> bool:
    return any(line.startswith("warning: ") and all(part in line for part in BLAMED[name]) for line in lines)


@pytest.mark.parametrize("load", [False, True], ids=["", "--load"])
def test_list_shows_all_and_warns_of_the_broken_ones(run: Run, load: bool) -> None:
    done = run("plugins", "list", *(["--load"] if load else []))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"lp", "nmtune", *NAMES} <= {line.split()[0] for line in lines}
    assert {name for name in NAMES if warned(lines, name)} == (set(NAMES) if load else FOUND_WITHOUT_IMPORT)


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_a_broken_one_is_one_line_that_names_its_owner(run: Run, name: str) -> None:
    done = run("plugins", "check", name)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in BLAMED[name])


def test_the_others_are_checked(run: Run) -> None:
    done = run("plugins", "check", "knn")
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout


def test_probes_run_with_the_others_and_refuse_the_broken_ones(run: Run, tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = (10 * np.eye(3, 8)[labels] + draws.standard_normal((60, 8))).astype(np.float32)
        np.save(tmp_path / f"{split}.npy", rows)
        text = "".join(f"sentence {number} of {split}\t{label}\n" for number, label in enumerate(labels))
        (tmp_path / f"{split}.tsv").write_text(text)
    study = (
        "--encoder",
        "features:train=train.npy,test=test.npy",
        "--task",
        "tsv:train.tsv,test.tsv,shifts=none",
    )
    done = run("probes.run", "--plugin", "lp,knn", *study)
    assert done.returncode == 0, done.stderr
    done = run("probes.run", "--plugin", "lp,raising", *study)
    assert done.returncode == 2
    assert all(part in done.stderr.splitlines()[-1] for part in BLAMED["raising"])


def test_a_sweep_is_planned_with_the_others_and_refuses_what_it_can_see(run: Run) -> None:
    launch = ("slurm.launch", "sweep", "--noise", "0", "--dry-run", "--cluster", "local")
    done = run(*launch, "--plugins", "lp", "mlp")
    assert done.returncode == 0, done.stderr
    done = run(*launch, "--plugins", "lp", "twin")
    assert done.returncode == 2
    assert all(part in done.stderr for part in BLAMED["twin"])


@pytest.mark.parametrize("targets", [None, "regression", frozenset(), frozenset({"regresion"})])
def test_a_head_that_says_wrongly_what_it_takes_is_no_head(targets: object) -> None:
    wrong = type("Wrong", (LinearProbe,), {"targets": targets})
    assert contract_fault(wrong) == (
        f"its targets are {targets!r}; possible: a set of classification, multilabel, regression"
    )
    assert contract_fault(type("Right", (LinearProbe,), {"targets": ["regression"]})) is None
