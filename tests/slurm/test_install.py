"""An ordinary installation, not a checkout: what the launcher needs comes along."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.snapshot import take_snapshot

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("nml", "shards", "pretrain", "plugins", "probes", "slurm", "recipes")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is after ``pip install .``, with no checkout beside it."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    site = folder / "site"
    subprocess.run(
        [*pip, "--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--target", site, source],
        check=True,
    )
    shutil.rmtree(source)
    return site


def launch(site: Path, cwd: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "slurm.launch", *words],
        cwd=cwd,
        # Ahead of the checkout that this environment has installed.
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_rooms(site: Path) -> None:
    wanted = {
        str(file.relative_to(ROOT))
        for name in SOURCES
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    found = {str(file.relative_to(site)) for file in site.rglob("*") if file.is_file()}
    assert wanted <= found
    # And nothing that an installation has no use for: no tests, no benchmarks.
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"} == {
        *SOURCES
    }


def test_recipes_and_cluster_files_are_found_from_any_folder(site: Path, tmp_path: Path) -> None:
    said = launch(site, tmp_path, "pretrain", "--recipe", "nope", status=2)
    assert f"recipes live in {site}" in said
    assert "; possible: cifar100_resnet18_half, " in said
    assert "cpu, gpu" in launch(site, tmp_path, "pretrain", "--cluster-file", "nope", status=2)


def test_an_installed_launcher_names_itself_as_it_was_called(site: Path, tmp_path: Path) -> None:
    said = launch(site, tmp_path, "pretrain", "--help")
    assert "python -m slurm.launch pretrain --noise 0.2 --nodes 8" in said
    assert "python slurm/launch.py" not in said


def test_an_installed_launcher_trains_and_snapshots_itself(site: Path, tmp_path: Path) -> None:
    small = ("--recipe.model.name", "test_resnet", "--epochs", "1")
    said = launch(
        site, tmp_path, "pretrain", "--cluster", "local", "--cluster-file", "cpu", "--noise", "0.2", *small
    )
    assert said.splitlines()[-1] == f"run: {tmp_path}/runs/quickstart-n20-seed0"
    snapshot = take_snapshot(tmp_path / "snapshots", site)
    assert (snapshot / "recipes" / "quickstart.yaml").is_file()
    assert (snapshot / "slurm" / "clusters" / "gpu.yaml").is_file()
