"""The whole way on real images, command by command: noisy shards, encoders, heads, report, trace.

docs/probes.md shows the same commands at full size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from probes.reporting.build import build
from probes.results import read_rows
from tests.commands import run_command
from tests.probes.chromium import Browser, check_everything_is_shown

Command = Callable[..., str]
TRAIN, TEST = 600, 150
HEADS = {"lp", "mlp", "nmtune"}
SHIFTS = {f"cifar10-{shift}" for shift in ("inverted", "rotated", "blurred", "noisy")}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Command:
    """Run a module of the project in a folder that holds a small CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, count in (("train", TRAIN), ("test", TEST)):
        table = pq.read_table(real_data / f"cifar10_{split}.parquet")
        pq.write_table(table.slice(0, count), folder / f"cifar10_{split}.parquet")

    def call(line: str) -> str:
        done = run_command(*line.split(), cwd=folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    call.folder = folder  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def results(command: Command) -> Path:
    """Results of two encoders that differ in their pre-training noise."""
    command("shards.write --source parquet:cifar10_train.parquet --noise 0 0.3 --out shards")
    for noise in ("0", "0.3"):
        command(
            f"pretrain.run --recipe cifar_resnet18 --recipe.model.name test_resnet --shards shards "
            f"--noise {noise} --epochs 1 --run-dir runs/noise-{noise}"
        )
    printed = command(
        "probes.run --plugin lp,mlp,nmtune --checkpoint runs/noise-0 runs/noise-0.3 "
        "--task parquet:cifar10_train.parquet,cifar10_test.parquet --seeds 3 "
        "--fractions 0.1 0.25 0.5 0.75 1 --hyper epochs=2"
    )
    # A header, a line an encoder and head, a note, and where the results are.
    lines = [line for line in printed.splitlines() if line.startswith("noise-")]
    assert [line.split()[3] for line in lines] == ["lp", "mlp", "nmtune"] * 2
    folder: Path = command.folder / "results"  # type: ignore[attr-defined]
    return folder


def test_every_encoder_head_fraction_and_seed_has_a_result_in_domain_and_out(results: Path) -> None:
    rows = read_rows(results)
    assert len(rows) == 2 * len(HEADS) * 5 * 3 * (1 + len(SHIFTS))
    assert {row.dataset for row in rows} == {"cifar10"} | SHIFTS
    assert {round(row.noise_ratio or 0.0, 2) for row in rows} == {0.0, 0.3}
    assert {row.n_train for row in rows if row.fraction == 0.1} < set(range(50, 60))


def test_the_report_shows_it_all(results: Path, command: Command, browser: Browser) -> None:
    command("probes.report results")
    expected = build(read_rows(results))
    names = {item.name for item in expected.figures}
    assert {"accuracy-noise", "accuracy-fractions", "encoder-spectra-accuracy", "datasets-ood"} <= names
    check_everything_is_shown(browser, results / "report" / "report.html", expected)


def test_a_result_is_traced_to_the_samples_that_were_flipped(results: Path, command: Command) -> None:
    row = next(row for row in read_rows(results) if row.noise_level == "n30")
    printed = command(f"probes.results trace {row.row_id}")
    assert "the very file" in printed
    assert f"flipped   {round(0.3 * TRAIN)} samples" in printed
    assert printed.count(" -> ") == 10
