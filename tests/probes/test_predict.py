"""From a study to a head in use: ``--save-heads``, then ``probes.predict``."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from plugins.saved import load_head
from probes.predict import EPILOG
from probes.predict import main as predict
from probes.results import read_rows
from probes.run import main as measure
from probes.tasks import open_task


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Probe made-up features of the bundled digits with a linear head, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    task = open_task("digits", tmp_path)
    assert task.validation is not None
    splits = {"train": task.train, "validation": task.validation, "test": task.evaluations[0].samples}
    generator = np.random.default_rng(0)
    centres = 2 * generator.normal(size=(10, 16))
    for name, samples in splits.items():
        noise = generator.normal(size=(len(samples.keys), 16))
        np.save(tmp_path / f"{name}.npy", (centres[samples.labels] + noise).astype(np.float32))
    files = ",".join(f"{name}={name}.npy" for name in splits)
    words = ["--encoder", f"features:{files}", "--plugin", "lp", "--hyper", "epochs=2", "--seeds", "2"]

    def run(*more: str) -> None:
        measure([*words, *more])

    return run


def test_a_saved_head_says_of_features_what_the_study_measured(
    study: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study("--save-heads", "heads")
        assert "\nheads: heads\n" in capsys.readouterr().out
        labels = open_task("digits", tmp_path).evaluations[0].samples.labels
        for row in read_rows(tmp_path / "results"):
            folder = f"heads/lp-{row.row_id}"
            predict([folder, "--features", "test.npy", "--out", f"{row.seed}.csv"])
            with (tmp_path / f"{row.seed}.csv").open() as file:
                lines = list(csv.DictReader(file))
            found = [line["class"] for line in lines]
            assert np.mean(np.array(found) == labels.astype(str)) == row.accuracy
            predict([folder, "--features", "test.npy", "--out", f"{row.seed}.npy"])
            shares = np.load(tmp_path / f"{row.seed}.npy")
            assert [str(best) for best in shares.argmax(axis=1)] == found
            assert [float(line["probability"]) for line in lines] == pytest.approx(shares.max(axis=1))
            likelihood = -np.log(np.take_along_axis(shares, labels[:, None], axis=1)).mean()
            assert row.nll == pytest.approx(likelihood, abs=1e-4)
            predict([folder, "--features", "test.npy", "--out", f"l{row.seed}.npy", "--logits"])
            exponentials = np.exp(np.load(tmp_path / f"l{row.seed}.npy") / row.temperature)
            assert np.allclose(exponentials / exponentials.sum(axis=1, keepdims=True), shares, atol=1e-6)
    assert len(list((tmp_path / "heads").iterdir())) == 2


def test_a_head_of_results_that_are_there_is_saved_later(study: Callable[..., None], tmp_path: Path) -> None:
    study()
    before = read_rows(tmp_path / "results")
    study("--save-heads", "heads")
    assert read_rows(tmp_path / "results") == before
    for row in before:
        assert load_head(tmp_path / "heads" / f"lp-{row.row_id}").about["seed"] == row.seed


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere", "--features", "test.npy"], "nowhere: no saved head"),
        (["HEAD", "--features", "wide.npy"], "--features wide.npy: 17 columns; possible: 16, as features:"),
        (["HEAD", "--features", "none.npy"], "--features none.npy: no such file"),
        (["HEAD", "--features", "test.npy", "--out", "a.txt"], "--out a.txt; possible: a file with .csv or"),
        (["HEAD", "--features", "test.npy", "--logits"], "--logits: --out predictions.csv; possible: a .npy"),
        (["HEAD", "--features", "test.npy", "--out", "test.npy"], "--out test.npy: exists already"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], error: str, study: Callable[..., None], tmp_path: Path
) -> None:
    study("--save-heads", "heads")
    np.save(tmp_path / "wide.npy", np.zeros((3, 17), np.float32))
    head = str(min((tmp_path / "heads").iterdir()))
    with pytest.raises(UserError, match=error):
        predict([head if word == "HEAD" else word for word in words])
    assert not (tmp_path / "predictions.csv").exists()


def test_the_task_that_the_help_shows_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(r"--task (\S+)", EPILOG)
    kind, _, folders = name.partition(":")
    assert kind == "imagefolder"
    for folder in folders.split(","):
        for label in ("cat", "dog"):
            place = tmp_path / folder / label
            place.mkdir(parents=True)
            for number in range(12):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"{number}.png")
    assert open_task(name, tmp_path).evaluations
