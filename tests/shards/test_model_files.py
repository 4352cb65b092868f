"""Files of labels and features: row by row to the samples of the source, and never taken for another file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nml import digits
from nml.errors import UserError
from nml.files import sha256_file, write_json
from shards import relabel, verify
from shards.shardset import ShardSet


@pytest.fixture
def human_labels(tmp_path: Path) -> Path:
    """Labels of the bundled digits in the order of the source, the first 100 of them wrong."""
    labels = digits.load("train").labels.copy()
    labels[:100] = (labels[:100] + 1) % 10
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path / "labels.npy"


def without_source_rows(folder: Path) -> None:
    """Make a set look like one of a version that did not record the rows of the source."""
    manifest = pq.read_table(folder / "manifest.parquet").drop_columns("source_row")
    pq.write_table(manifest, folder / "manifest.parquet")
    described = ShardSet.open(folder).info
    changed = replace(described, manifest_sha256=sha256_file(folder / "manifest.parquet"))
    write_json(folder / "set.json", changed.as_json())


def labels_by_key(folder: Path, level: str) -> dict[str, int]:
    table = pq.read_table(folder / "manifest.parquet", columns=["key", level])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_labels_in_the_order_of_the_source_go_to_its_samples(copied: Path, human_labels: Path) -> None:
    relabel.main([str(copied), "--model", "from-file", "--model-file", str(human_labels)])
    assert ShardSet.open(copied).levels["n07p94"].flipped == 100
    given = dict(zip(digits.load("train").keys, np.load(human_labels).tolist(), strict=True))
    assert labels_by_key(copied, "label_n07p94") == given
    assert verify.main([str(copied)]) == 0


def test_labels_from_a_file_that_are_all_clean_are_no_level(copied: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", digits.load("train").labels)
    before = {path.name: sha256_file(path) for path in copied.iterdir()}
    with pytest.raises(UserError, match="every label of the file is the clean one: there is no noise to add"):
        relabel.main([str(copied), "--model", "from-file", "--model-file", str(tmp_path / "same.npy")])
    assert {path.name: sha256_file(path) for path in copied.iterdir()} == before


def test_a_changed_file_of_labels_is_not_taken_for_done(
    human_labels: Path,
    tmp_path: Path,
    written: Callable,
    requested: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = requested("digits", "0", model="from-file", model_file=str(human_labels))
    with monkeypatch.context() as patch:
        patch.setattr("shards.writing.pack_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            written(tmp_path / "begun", request)
    written(tmp_path / "set", request)
    written(tmp_path / "set", request)
    labels = np.load(human_labels)
    labels[200] = (labels[200] + 1) % 10
    np.save(human_labels, labels)
    for name in ("begun", "set"):
        with pytest.raises(UserError, match=rf"labels\.npy: changed since .*{name} was written from it"):
            written(tmp_path / name, request)


def test_features_in_the_order_of_the_source_go_to_its_samples(
    copied: Path, tmp_path: Path, written: Callable, requested: Callable
) -> None:
    features = digits.load("train").images.reshape(1259, -1)[:, ::40].astype(np.float64)
    np.save(tmp_path / "features.npy", features)
    named = {"model": "instance-dependent", "model_file": str(tmp_path / "features.npy")}
    written(tmp_path / "whole", requested("digits", "0.15", **named))
    relabel.main(
        [str(copied), "--noise", "0.15", "--model", named["model"], "--model-file", named["model_file"]]
    )
    assert labels_by_key(copied, "label_n15") == labels_by_key(tmp_path / "whole", "label_n15")


def test_a_set_that_does_not_know_its_source_s_order_takes_only_files_with_keys(
    copied: Path, human_labels: Path, tmp_path: Path
) -> None:
    without_source_rows(copied)
    command = [str(copied), "--model", "from-file", "--model-file"]
    with pytest.raises(UserError, match=r"which this set does not record; name a CSV with a line KEY,LABEL"):
        relabel.main([*command, str(human_labels)])
    given = dict(zip(digits.load("train").keys, np.load(human_labels).tolist(), strict=True))
    (tmp_path / "labels.csv").write_text("".join(f"{key},{label}\n" for key, label in given.items()))
    relabel.main([*command, str(tmp_path / "labels.csv")])
    assert labels_by_key(copied, "label_n07p94") == given
    assert verify.main([str(copied)]) == 0
