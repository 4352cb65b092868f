"""Splits: training files alone where their names tell, and held-out ones known for what they are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from shards import index
from shards.sources import open_source
from shards.sources.files import looks_held_out


@pytest.mark.parametrize(
    "name",
    [
        "/data/val",
        "imagenet/validation/",
        "cifar10_test.parquet",
        "data/test-00000-of-1.parquet",
        "imagenet1k-validation-07.tar",
        "imagenet-val-0063.tar",
        "/data/imagenet/val/0.tar",
        "/data/imagenet-val/0.tar",
        "/data/train/x_val.parquet",
        "validation[:10%]",
        "val2017",
    ],
)
def test_held_out_splits_are_known_by_their_names(name: str) -> None:
    assert looks_held_out(name)


@pytest.mark.parametrize(
    "name",
    [
        "/data/train",
        "cifar10_train.parquet",
        "contest",
        "latest",
        "/validation/train",
        "/test_of_my_code/0.tar",
    ],
)
def test_training_splits_are_not_taken_for_held_out(name: str) -> None:
    assert not looks_held_out(name)


def make_parts(folder: Path, kind: str, *names: str) -> None:
    """Write a file of two samples a name into a folder."""
    for name in names:
        file = folder / f"{name}.{'parquet' if kind == 'parquet' else 'tar'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        keys = [f"{file.stem}-{number}" for number in range(2)]
        if kind == "parquet":
            pq.write_table(pa.table({"image": [b"any"] * 2, "label": [0, 1], "key": keys}), file)
            continue
        with tarfile.open(file, "w") as tar:
            for key in keys:
                for extension, content in (("jpg", b"any"), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def names_of(source: str, **options: str) -> list[str]:
    return [example.name.rpartition("-")[0] for example in open_source(source, **options)][::2]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_files_that_tell_their_split_are_read_a_split_at_a_time(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["in1k-train-0000", "in1k-train-0001"]
    make_parts(tmp_path / "all", kind, *train, "in1k-validation-00", "test-00000-of-00001", "extra-0")
    source = f"{kind}:{tmp_path / 'all'}"
    assert names_of(source) == train
    assert "read 2 of 5 files: the split train" in capsys.readouterr().err
    assert names_of(source, split="val") == ["in1k-validation-00"]
    assert names_of(source, split="test") == ["test-00000-of-00001"]
    assert names_of(source, split="extra") == ["extra-0"]
    assert open_source(source, split="val").held_out
    assert not open_source(source).held_out
    with pytest.raises(UserError, match=r"dev2x: no file .* possible: test, train, validation; choose"):
        open_source(source, split="dev2x")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_files_that_tell_no_split_are_read_whole(tmp_path: Path, kind: str) -> None:
    make_parts(tmp_path / "all", kind, "a", "b")
    assert names_of(f"{kind}:{tmp_path / 'all'}") == ["a", "b"]
    with pytest.raises(UserError, match=r"--split train: .* leave it out to read them all"):
        open_source(f"{kind}:{tmp_path / 'all'}", split="train")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_held_out_files_side_by_side_want_a_choice(tmp_path: Path, kind: str) -> None:
    make_parts(tmp_path / "all", kind, "val-0", "test-0", "a")
    with pytest.raises(UserError, match="of test and validation and others that tell no split; choose with"):
        open_source(f"{kind}:{tmp_path / 'all'}")
    assert open_source(f"{kind}:{tmp_path / 'all'}/val-*").held_out


def test_folders_below_the_one_named_tell_splits_too(tmp_path: Path) -> None:
    make_parts(tmp_path / "all", "parquet", "train/part/a", "test/part/b")
    assert names_of(f"parquet:{tmp_path / 'all'}") == ["a"]
    assert open_source(f"parquet:{tmp_path / 'all'}", split="test").held_out


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("MNIST", "tran", "--split tran: not a split of MNIST; possible: train, test"),
        ("MNIST", "validation", "--split validation: not a split of MNIST"),
        ("ImageFolder", "train", "--split train: torchvision's ImageFolder has no splits; leave it out"),
    ],
)
def test_a_split_that_torchvision_does_not_have_is_refused(
    tmp_path: Path, name: str, split: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_source(f"torchvision:{name}:{tmp_path}", split=split)


def test_an_image_folder_of_torchvision_may_be_held_out(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "0.jpg").write_bytes(b"any")
    assert open_source(f"torchvision:ImageFolder:{tmp_path / 'val'}").held_out
    assert not open_source(f"torchvision:ImageFolder:{tmp_path / 'train'}").held_out


@pytest.mark.parametrize(("saved", "held_out"), [("train", False), ("validation", True), (None, True)])
def test_a_split_saved_by_hugging_face_is_known(tmp_path: Path, saved: str | None, held_out: bool) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": b"any", "path": None}], "label": [0]}
    folder = tmp_path / ("kept" if saved else "validation")
    datasets.Dataset.from_dict(rows, features=features, split=saved).save_to_disk(folder)
    assert open_source(f"huggingface:{folder}").held_out == held_out
    if saved:
        with pytest.raises(UserError, match=f"--split test: .* from another split; possible: {saved}"):
            open_source(f"huggingface:{folder}", split="test")


def test_an_index_over_tars_of_several_splits_is_refused(tmp_path: Path) -> None:
    make_parts(tmp_path / "all", "webdataset", "train-0", "val-0")
    with pytest.raises(UserError, match="give each split a folder of its own"):
        index.main([str(tmp_path / "all")])
