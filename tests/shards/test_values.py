"""Classes and captions of sources: what counts as one, and what is refused instead of made to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml.errors import UserError
from shards.arrow_columns import take_rows
from shards.shardset import ShardSet
from shards.verify import verify
from tests.shards.small_sources import IMAGES, LABELS, NAMES, make_tar, run


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        (
            '["a", ["b"]]',
            ["--caption-column", "y"],
            r"00000': its .json holds the caption \['b'\], which is no",
        ),
        ("null", ["--caption-column", "y"], "holds the caption None, which is no text"),
        ("null", ["--label-column", "y"], "holds the class None, which is neither"),
        ("2.5", ["--label-column", "y"], "holds the class 2.5, which is neither"),
        ("0", ["--label-column", "z"], "no z in its .json: .* name another field with --label-column"),
    ],
)
def test_a_field_of_a_tar_that_cannot_be_used_is_one_line(
    tmp_path: Path, value: str, more: list[str], message: str
) -> None:
    make_tar(tmp_path / "a.tar", "json", [f'{{"y": {value}}}' for _ in LABELS])
    with pytest.raises(UserError, match=message):
        run(f"webdataset:{tmp_path / 'a.tar'}", tmp_path / "out", *more)


@pytest.mark.parametrize("names", [["0", "1", "a"], ["1", "b", "10"], ["cat", "dog", "7"]])
def test_numbers_among_class_names_are_names(tmp_path: Path, names: list[str]) -> None:
    given = [names[label] for label in LABELS]
    make_tar(tmp_path / "a.tar", "cls", given)
    run(f"webdataset:{tmp_path / 'a.tar'}", tmp_path / "out")
    written = ShardSet.open(tmp_path / "out")
    assert written.classes == tuple(sorted(names))
    keys, labels = (written.index.column(name).to_pylist() for name in ("key", "label"))
    assert [written.classes[label] for _, label in sorted(zip(keys, labels, strict=True))] == given
    assert not [finding for finding in verify(tmp_path / "out") if finding.problem]


@pytest.mark.parametrize(
    ("labels", "classes"), [([False, True], ("0", "1")), ([0.0, 1.0, 2.0], ("0", "1", "2"))]
)
def test_truth_values_and_whole_floats_are_classes(
    tmp_path: Path, labels: list[float], classes: tuple[str, ...]
) -> None:
    table = pa.table({"image": IMAGES, "label": [labels[number % len(labels)] for number in range(12)]})
    pq.write_table(table, tmp_path / "data.parquet")
    run(f"parquet:{tmp_path / 'data.parquet'}", tmp_path / "out")
    assert ShardSet.open(tmp_path / "out").classes == classes


def test_captions_of_a_text_table_that_are_all_numbers_stay_texts(image_folder: Path, tmp_path: Path) -> None:
    rows = [f"{NAMES[label]}/{number:02d}.jpg,00{number}" for number, label in enumerate(LABELS)]
    (image_folder / "list.csv").write_text("\n".join(["filepath,caption", *rows]))
    run(f"csv:{image_folder / 'list.csv'}", tmp_path / "out")
    captions = pq.read_table(tmp_path / "out" / "manifest.parquet")["caption"].to_pylist()
    assert sorted(captions) == sorted(f"00{number}" for number in range(12))


@given(
    chunks=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    picks=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_rows_of_a_column_are_taken_from_whatever_chunks_it_has(chunks: list[int], picks: list[int]) -> None:
    ends = np.cumsum(chunks)
    column = pa.chunked_array(
        [[f"text {row}" for row in range(end - size, end)] for size, end in zip(chunks, ends, strict=True)],
        pa.string(),
    )
    rows = np.array([pick % len(column) for pick in picks if len(column)], np.int64)
    assert take_rows(column, rows).to_pylist() == [f"text {row}" for row in rows]


def test_rows_of_a_column_of_more_than_2_gib_are_taken() -> None:
    # One chunk many times over: 2.5 GiB of text in 64 MiB of memory.
    chunk = pa.array([str(row) + "x" * (1 << 20) for row in range(64)])
    column = pa.chunked_array([chunk] * 40)
    rows = np.array([2559, 0, 1300, 0])
    assert [text.as_py().rstrip("x") for text in take_rows(column, rows)] == ["63", "0", "20", "0"]


@pytest.mark.parametrize("missing", ["image", "label", "text"])
def test_a_hugging_face_row_without_its_image_or_supervision_is_one_line(
    tmp_path: Path, missing: str
) -> None:
    datasets = pytest.importorskip("datasets")
    name, feature = (
        ("text", datasets.Value("string")) if missing == "text" else ("label", datasets.Value("int64"))
    )
    image = None if missing == "image" else {"bytes": IMAGES[0], "path": None}
    value = {"image": 0, "label": None, "text": None}[missing]
    features = datasets.Features({"image": datasets.Image(), name: feature})
    datasets.Dataset.from_dict({"image": [image], name: [value]}, features=features).save_to_disk(
        tmp_path / "in"
    )
    with pytest.raises(UserError, match=f"row 0 has no {missing}; filter it out of the data set"):
        run(f"huggingface:{tmp_path / 'in'}", tmp_path / "out")
