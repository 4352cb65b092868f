"""Sources: the same samples, whatever they come as, with their bytes untouched."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from shards import index, write
from shards.hashing import MAX_LENGTH, key_of
from shards.shardset import ShardSet
from shards.sources import SOURCES, open_source
from shards.sources.files import expand
from shards.verify import verify
from tests.shards.small_sources import IMAGES, LABELS, NAMES, check, make_tar, run


def test_the_built_in_sources_are_registered() -> None:
    ours = [plugin for plugin in SOURCES.discover() if plugin.distribution == "noisy-model-learning"]
    assert [plugin.name for plugin in ours] == [
        "csv",
        "digits",
        "huggingface",
        "imagefolder",
        "parquet",
        "torchvision",
        "tsv",
        "wds",
        "webdataset",
    ]


def test_an_image_folder(image_folder: Path, tmp_path: Path) -> None:
    run(f"imagefolder:{image_folder}", tmp_path / "out")
    assert check(tmp_path / "out").level(0.25).flipped == 3


def test_an_image_folder_s_weird_names_make_clean_keys(image_folder: Path, tmp_path: Path) -> None:
    shutil.move(image_folder / "cat" / "00.jpg", image_folder / "cat" / "ü.b c.JPEG")
    (image_folder / "cat" / "03.jpg").rename(image_folder / "cat" / "03.x.jpg")
    (image_folder / "cat" / "06.jpg").rename(image_folder / "cat" / "03-x.jpg")
    (image_folder / "cat" / "notes.txt").write_text("no image")
    (image_folder / ".hidden").mkdir()
    run(f"imagefolder:{image_folder}", tmp_path / "out")
    check(tmp_path / "out")


def test_names_that_make_one_key_are_kept_apart(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cat" / "00.jpg").rename(image_folder / "cat" / "a b.jpg")
    (image_folder / "cat" / "03.jpg").rename(image_folder / "cat" / "a.b.jpg")
    run(f"imagefolder:{image_folder}", tmp_path / "out")
    keys = pq.read_table(tmp_path / "out" / "manifest.parquet")["key"].to_pylist()
    assert len(set(keys)) == 12
    assert sum(key.startswith("cat_a_b-") for key in keys) == 2


def test_keys_hold_only_what_every_reader_agrees_on() -> None:
    assert key_of("n01440764/n01440764_10026.JPEG") == "n01440764_n01440764_10026"
    assert key_of("a" * 300 + ".jpg") != key_of("a" * 301 + ".jpg")
    for name in ("a" * 300, "日本.jpg", "...", "a/b.c/d.jpg", "x.tar.gz", ""):
        assert len(key_of(name)) <= MAX_LENGTH
        assert set(key_of(name)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.parametrize("form", ["struct", "bytes", "paths"])
def test_parquet_with_bytes_structs_or_paths(image_folder: Path, tmp_path: Path, form: str) -> None:
    paths = [f"train/{NAMES[label]}/{number:02d}.jpg" for number, label in enumerate(LABELS)]
    images: object = {
        "struct": [{"bytes": image, "path": path} for image, path in zip(IMAGES, paths, strict=True)],
        "bytes": IMAGES,
        "paths": paths,
    }[form]
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "data.parquet")
    run(f"parquet:{tmp_path / 'data.parquet'}", tmp_path / "out")
    check(tmp_path / "out", ("0", "1", "2"))


def test_memory_does_not_grow_with_a_table_s_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    file = tmp_path / "train.parquet"
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(20):
            images = [generator.bytes(100_000) for _ in range(40)]
            writer.write_table(pa.table({"image": images, "label": [0] * 40}, schema=schema))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in open_source(f"parquet:{file}")]
    # A batch of rows is 26 MB, the file 80.
    assert max(held) < 40_000_000


def test_parquet_takes_class_names_from_hugging_face_metadata(tmp_path: Path) -> None:
    metadata = {"huggingface": '{"info": {"features": {"label": {"names": ["cat", "dog", "emu"]}}}}'}
    table = pa.table({"image": IMAGES, "label": LABELS}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "data.parquet")
    run(f"parquet:{tmp_path / 'data.parquet'}", tmp_path / "out")
    check(tmp_path / "out")


def test_parquet_class_names_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES, "label": [NAMES[label] for label in LABELS]})
    pq.write_table(table.take(list(reversed(range(12)))), tmp_path / "data.parquet")
    run(f"parquet:{tmp_path / 'data.parquet'}", tmp_path / "out")
    check(tmp_path / "out")


def test_parquet_in_a_folder_and_rows_without_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for part in range(2):
        rows = slice(6 * part, 6 * part + 6)
        table = {
            "jpg": [*IMAGES[rows], None],
            "cls": [*LABELS[rows], 0],
            "key": [f"k{part}{number}" for number in range(7)],
        }
        pq.write_table(pa.table(table), tmp_path / "in" / f"{part}.parquet")
    run(f"parquet:{tmp_path / 'in'}", tmp_path / "out")
    check(tmp_path / "out", ("0", "1", "2"))
    assert "left out 2 of 14 rows" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_text_tables_with_paths(image_folder: Path, tmp_path: Path, kind: str) -> None:
    with (image_folder / f"list.{kind}").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
        writer.writerow(["filepath", "label"])
        for number, label in enumerate(LABELS):
            writer.writerow([f"{NAMES[label]}/{number:02d}.jpg", NAMES[label]])
    run(f"{kind}:{image_folder / f'list.{kind}'}", tmp_path / "out")
    check(tmp_path / "out")


def test_captions_with_line_breaks_are_read_from_a_large_csv(image_folder: Path, tmp_path: Path) -> None:
    # Past the reader's first block of 1 MiB, quoted line breaks were taken for the ends of rows.
    texts = {number: f"caption {number}\n" + "and, another line\n" * 12_000 for number in range(12)}
    with (image_folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "caption"])
        writer.writerows(
            [f"{NAMES[label]}/{number:02d}.jpg", texts[number]] for number, label in enumerate(LABELS)
        )
    run(f"csv:{image_folder / 'list.csv'}", tmp_path / "out")
    captions = pq.read_table(tmp_path / "out" / "manifest.parquet")["caption"].to_pylist()
    assert sorted(captions) == sorted(texts.values())


def test_captions_of_a_table(tmp_path: Path) -> None:
    texts = [f'caption "{number}", with ümlaut\nand a line' for number in range(12)]
    pq.write_table(pa.table({"image": IMAGES, "text": texts}), tmp_path / "data.parquet")
    run(f"parquet:{tmp_path / 'data.parquet'}", tmp_path / "out")
    shard_set = ShardSet.open(tmp_path / "out")
    assert shard_set.kind == "caption"
    table = pq.read_table(tmp_path / "out" / "manifest.parquet")
    assert sorted(table["caption"].to_pylist()) == sorted(texts) == sorted(table["caption_n25"].to_pylist())
    assert not [finding for finding in verify(tmp_path / "out") if finding.problem]


@pytest.mark.parametrize(
    ("ending", "form", "more"),
    [("cls", "{}", []), ("json", '{{"y": {}}}', ["--label-column", "y"])],
)
def test_existing_tars(tmp_path: Path, ending: str, form: str, more: list[str]) -> None:
    make_tar(tmp_path / "a.tar", ending, [form.format(label) for label in LABELS])
    run(f"webdataset:{tmp_path / 'a.tar'}", tmp_path / "out", *more)
    check(tmp_path / "out", ("0", "1", "2"))


def test_ranges_of_tars_expand() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]


def test_equal_names_of_two_tars_are_kept_apart_as_in_an_index(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for part in (0, 1):
        rows = slice(6 * part, 6 * part + 6)
        values = [str(label) for label in LABELS[rows]]
        make_tar(tmp_path / "in" / f"part-{part}.tar", "cls", values, IMAGES[rows])
    run(f"webdataset:{tmp_path / 'in'}", tmp_path / "out")
    keys = check(tmp_path / "out", ("0", "1", "2")).index.column("key").to_pylist()
    index.main([str(tmp_path / "in")])
    assert sorted(keys) == sorted(ShardSet.open(tmp_path / "in").index.column("key").to_pylist())


def test_a_set_written_here_is_a_source_too(image_folder: Path, tmp_path: Path) -> None:
    write.main(["--source", f"imagefolder:{image_folder}", "--out", str(tmp_path / "first")])
    run(f"webdataset:{tmp_path / 'first'}", tmp_path / "out")
    assert check(tmp_path / "out").info.parent == {
        "fingerprint": ShardSet.open(tmp_path / "first").fingerprint,
        "level": "n00",
    }


def test_a_noisy_field_of_a_set_is_noised_again_only_with_chain(image_folder: Path, tmp_path: Path) -> None:
    write.main(
        ["--source", f"imagefolder:{image_folder}", "--noise", "0", "0.25", "--out", str(tmp_path / "a")]
    )
    source = f"webdataset:{tmp_path / 'a'}"
    with pytest.raises(UserError, match=r"its labels are already noisy \(n25\)"):
        run(source, tmp_path / "out", "--label-column", "label_n25")
    run(source, tmp_path / "out", "--label-column", "label_n25", "--chain")
    assert ShardSet.open(tmp_path / "out").info.parent["level"] == "n25"
    write.main(["--source", f"imagefolder:{image_folder}", "--noise", "0.25", "--out", str(tmp_path / "b")])
    run(f"webdataset:{tmp_path / 'b'}", tmp_path / "clean", "--label-column", "label")
    assert ShardSet.open(tmp_path / "clean").info.parent["level"] == "n00"


def test_torchvision_by_name(image_folder: Path, tmp_path: Path) -> None:
    run(f"torchvision:ImageFolder:{image_folder}", tmp_path / "out")
    check(tmp_path / "out")


def test_a_saved_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    run(f"huggingface:{tmp_path / 'saved'}", tmp_path / "out")
    check(tmp_path / "out")


def test_noise_does_not_depend_on_the_order_of_the_source(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(12)]
    levels = []
    for name, order in (("a", range(12)), ("b", reversed(range(12)))):
        table = pa.table({"key": keys, "image": IMAGES, "label": LABELS}).take(list(order))
        pq.write_table(table, tmp_path / f"{name}.parquet")
        run(f"parquet:{tmp_path / f'{name}.parquet'}", tmp_path / name)
        manifest = pq.read_table(tmp_path / name / "manifest.parquet")
        levels.append(manifest.select(["key", "shard", "image_offset", "sha256", "label_n25"]))
    assert levels[0].equals(levels[1])


def test_a_third_party_source_is_named_with_its_near_match() -> None:
    with pytest.raises(UserError, match="did you mean parquet"):
        open_source("parket:x")


def test_real_captions_from_real_tars(tmp_path: Path, real_data: Path) -> None:
    tar = real_data / "cc12m-0000.tar"
    if not tar.exists():
        pytest.skip(f"{tar} is not there")
    write.main(["--source", f"webdataset:{tar}", "--noise", "0.25", "0.5", "--out", str(tmp_path / "out")])
    shard_set = ShardSet.open(tmp_path / "out")
    assert [level.moved for level in shard_set.levels.values()] == [None, 8, 16]
    assert not [finding for finding in verify(tmp_path / "out") if finding.problem]


def test_a_hundred_thousand_captions_are_swapped_exactly(
    tmp_path: Path, written: Callable, requested: Callable
) -> None:
    size = 100_000
    texts = [f"a photo of {number % 60_000}" for number in range(size)]
    images = pa.array([IMAGES[0]]).take(pa.array(np.zeros(size, np.int64)))
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "captions.parquet")
    source = f"parquet:{tmp_path / 'captions.parquet'}"
    shard_set = written(tmp_path / "out", requested(source, "0.05", "0.3", limits=requested().limits))
    assert [(level.moved, level.flipped) for level in shard_set.levels.values()] == [
        (None, 0),
        (5000, 5000),
        (30_000, 30_000),
    ]
    table = pq.read_table(tmp_path / "out" / "manifest.parquet", columns=["caption", "caption_n30"])
    clean, noisy = (table[name].to_numpy() for name in ("caption", "caption_n30"))
    assert (clean != noisy).sum() == 30_000
    assert sorted(clean) == sorted(noisy)
