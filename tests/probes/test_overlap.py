"""Training and test data that share samples, as ``probes.run`` meets them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from probes import run
from probes.results import read_rows
from probes.tasks import open_task
from probes.tasks.overlap import check_overlap, overlaps


def images(path: Path, numbers: list[int]) -> Path:
    """Write small images, each a function of its number, of two classes."""
    rows = []
    for number in numbers:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "png")
        rows.append({"image": {"bytes": buffer.getvalue()}, "label": number % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def probe(folder: Path, task: str, *more: str) -> None:
    run.main(
        [
            *("--plugin", "lp", "--hyper", "epochs=1", "--encoder", "timm:test_resnet,weights=random"),
            *("--task", task, "--results", str(folder / "results"), "--features", str(folder / "features")),
            *more,
        ]
    )


def test_a_file_for_both_training_and_test_is_refused_before_any_work(tmp_path: Path) -> None:
    same = images(tmp_path / "all.parquet", list(range(40)))
    with pytest.raises(UserError, match=r"hold 40 of 40 samples of .*--allow-overlap"):
        probe(tmp_path, f"parquet:{same},{same}")
    assert not (tmp_path / "results").exists()


def test_who_asks_for_it_may_probe_on_seen_samples_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = images(tmp_path / "train.parquet", list(range(40)))
    test = images(tmp_path / "test.parquet", list(range(38, 60)))
    probe(tmp_path, f"parquet:{train},{test}", "--allow-overlap")
    assert "hold 2 of 22 samples of" in capsys.readouterr().out
    assert read_rows(tmp_path / "results")


def test_shifts_of_the_test_images_are_told_once_and_other_test_sets_for_themselves(tmp_path: Path) -> None:
    train = images(tmp_path / "train.parquet", list(range(40)))
    test = images(tmp_path / "test.parquet", list(range(39, 60)))
    other = images(tmp_path / "other.parquet", [5, 6, 7, *range(70, 80)])
    shifted = overlaps(open_task(f"parquet:{train},{test}"))
    assert [(one.shared, one.samples) for one in shifted] == [(1, 21)]
    assert [one.shared for one in overlaps(open_task(f"parquet:{train},{test},{other}"))] == [1, 3]
    clean = images(tmp_path / "clean.parquet", list(range(50, 60)))
    assert overlaps(open_task(f"parquet:{train},{clean}")) == []


def test_validation_data_that_are_test_data_are_refused(tmp_path: Path) -> None:
    train = images(tmp_path / "train.parquet", list(range(40)))
    test = images(tmp_path / "test.parquet", list(range(50, 60)))
    with pytest.raises(UserError, match=r"its validation data hold 10 of 10 samples of .*--allow-overlap"):
        probe(tmp_path, f"parquet:{train},{test},validation={test}")


def test_a_variant_that_is_the_test_data_is_refused(tmp_path: Path) -> None:
    train = images(tmp_path / "train.parquet", list(range(40)))
    test, copy = (images(tmp_path / f"{name}.parquet", list(range(50, 60))) for name in ("test", "copy"))
    with pytest.raises(UserError, match=r"the samples of .*-copy are those of the test data; .*--allow-over"):
        probe(tmp_path, f"parquet:{train},{test},{copy}")
    assert not (tmp_path / "results").exists()


def test_texts_and_pairs_are_compared_whole(tmp_path: Path) -> None:
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    train.write_text("text\tlabel\n" + "".join(f"text {number}\t{number % 2}\n" for number in range(30)))
    test.write_text("text\tlabel\ntext 3\t1\ntext  3\t1\nnew\t0\nmore\t0\n")
    (found,) = overlaps(open_task(f"tsv:{train},{test}"))
    assert (found.shared, found.samples) == (1, 4)


def test_a_published_division_is_told_and_not_refused() -> None:
    digits = open_task("digits")
    assert check_overlap(digits, published=True, allowed=False) is None
    same = type(digits)(**{**vars(digits), "train": digits.evaluations[0].samples})
    assert "hold 359 of 359 samples of digits" in check_overlap(same, published=True, allowed=False)
