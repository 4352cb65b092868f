"""Several captions an image: however they are stored, each has its own place in the swap, and its turn."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml.errors import UserError
from shards import index, relabel, verify
from shards.captions import LISTS, caption_hashes
from shards.dataset import ShardDataset
from shards.hashing import hash_keys
from shards.index_table import IndexTable
from shards.noise import Population
from shards.noise.caption_swap import CaptionSwap
from shards.sampler import SampleRef
from shards.shardset import ShardSet
from tests.shards.small_sources import IMAGES, run

# Image 3 has one caption, image 5 four of which two are alike.
CAPTIONS = {f"i{number}": [f'a "{number}" {place} é' for place in range(3)] for number in range(12)}
CAPTIONS["i3"] = ["one"]
CAPTIONS["i5"] = ["same", "x", "same", "y"]
EQUAL = {key: captions for key, captions in CAPTIONS.items() if len(captions) == 3}


def make(folder: Path, form: str) -> str:
    """Write the images with their captions in one of their forms, and return the source's name."""
    images = dict(zip(CAPTIONS, IMAGES, strict=True))
    if form == "lists":
        columns = {"key": list(images), "image": list(images.values()), "caption": list(CAPTIONS.values())}
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return f"parquet:{folder / 'a.parquet'}"
    if form == "rows":
        for key, image in images.items():
            (folder / f"{key}.jpg").write_bytes(image)
        rows = [
            [f"{key}.jpg", place, text] for key, texts in CAPTIONS.items() for place, text in enumerate(texts)
        ]
        rows.sort(key=lambda row: hash(row[2][::-1]) if row[2] != "same" else row[1])
        with (folder / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["filename", "caption_number", "caption"], *rows])
        return f"csv:{folder / 'a.csv'}"
    if form == "rows of bytes":
        rows = [
            {"image": {"bytes": images[key], "path": f"{key}.jpg"}, "caption": text}
            for key, texts in CAPTIONS.items()
            for text in texts
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=5)
        return f"parquet:{folder / 'a.parquet'}"
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, image in images.items():
            record = json.dumps({"sentences": CAPTIONS[key]}).encode()
            for name, content in ((f"{key}.jpg", image), (f"{key}.json", record)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return f"webdataset:{folder}"


@pytest.fixture(scope="module")
def by_lists(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("lists")
    run(make(folder, "lists"), folder / "set", "--noise", "0.2", "0.5")
    return ShardSet.open(folder / "set")


def captions(shard_set: ShardSet, column: str) -> dict[str, list[str]]:
    keys = shard_set.index.column("key").to_pylist()
    return dict(zip(keys, shard_set.index.column(column).to_pylist(), strict=True))


@pytest.mark.parametrize("form", ["rows", "rows of bytes", "tars", "sidecar"])
def test_all_forms_of_the_same_captions_are_one_set_of_levels(
    form: str, by_lists: ShardSet, tmp_path: Path
) -> None:
    source, out = make(tmp_path, form), tmp_path / "set"
    if form == "sidecar":
        index.main([str(tmp_path), "--out", str(out), "--caption-column", "sentences"])
        relabel.main([str(out), "--noise", "0.2", "0.5"])
    else:
        words = ["--caption-column", "sentences"] if form == "tars" else []
        run(source, out, "--noise", "0.2", "0.5", *words)
    shard_set = ShardSet.open(out)
    assert captions(shard_set, "caption") == CAPTIONS
    for name, level in by_lists.info.levels.items():
        assert captions(shard_set, level.column) == captions(by_lists, level.column)
        assert shard_set.info.levels[name].flipped == level.flipped
    assert verify.main([str(out), "--decode"]) == 0


def test_a_column_a_caption_is_read_too(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"key": list(EQUAL), "image": list(IMAGES[: len(EQUAL)])}
    columns |= {f"caption_{place}": [texts[place] for texts in EQUAL.values()] for place in (1, 0, 2)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    run(f"parquet:{tmp_path / 'a.parquet'}", tmp_path / "set", "--noise", "0")
    assert captions(ShardSet.open(tmp_path / "set"), "caption") == EQUAL
    run(
        f"parquet:{tmp_path / 'a.parquet'}", tmp_path / "one", "--noise", "0", "--caption-column", "caption_1"
    )
    assert ShardSet.open(tmp_path / "one").kind == "caption"


def test_rows_of_one_image_under_names_of_their_own_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "id": number,
            "image_id": f"image-{number // 3}",
            "image": IMAGES[number // 3],
            "caption": f"a {number}",
        }
        for number in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    run(f"parquet:{tmp_path / 'a.parquet'}", tmp_path / "set")
    assert "12 captions are of 4 images" in (told := capsys.readouterr().err)
    assert "--key-column image_id" in told
    run(f"parquet:{tmp_path / 'a.parquet'}", tmp_path / "images", "--key-column", "image_id")
    assert "--key-column" not in capsys.readouterr().err
    assert ShardSet.open(tmp_path / "images").num_samples == 4


def test_counts_are_of_captions_and_exact(by_lists: ShardSet) -> None:
    clean = captions(by_lists, "caption")
    for level in by_lists.info.levels.values():
        given_captions = captions(by_lists, level.column)
        changed = sum(a != b for key in clean for a, b in zip(clean[key], given_captions[key], strict=True))
        assert level.moved == round(Fraction(level.asked) * 35)
        assert changed == level.flipped
        assert level.realised == level.flipped / 35
        used = Counter(text for texts in given_captions.values() for text in texts)
        assert used == Counter(text for texts in clean.values() for text in texts)


def test_stock_loaders_find_the_first_caption_and_all_of_them(by_lists: ShardSet) -> None:
    given_captions, found = captions(by_lists, "caption_n20"), {}
    for shard in by_lists.info.shards:
        with tarfile.open(Path(by_lists.path) / shard.name) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".txt"):
                    found[member.name.removesuffix(".txt")] = content.read().decode()
                elif member.name.endswith(".json"):
                    record = json.loads(content.read())
                    assert record["caption"] == CAPTIONS[record["key"]]
    assert found == {key: texts[0] for key, texts in given_captions.items()}


def test_each_caption_has_its_turn_and_a_run_that_goes_on_the_same_one(by_lists: ShardSet) -> None:
    dataset = ShardDataset(by_lists, "n50", lambda image: image.size, seed=3)
    given_captions = captions(by_lists, "caption_n50")
    keys = by_lists.index.column("key").to_pylist()
    begun = set()
    for sample, key in enumerate(keys):
        count = len(given_captions[key])
        seen = [dataset[SampleRef(sample, epoch)].target for epoch in range(count)]
        assert sorted(seen) == sorted(given_captions[key])
        again = ShardDataset(by_lists, "n50", lambda image: image.size, seed=3)
        assert again[SampleRef(sample, count - 1)].target == seen[-1]
        begun.add(given_captions[key].index(seen[0]))
    # Not all begin with their first.
    assert len(begun) > 1


@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=12),
    st.integers(0, 3),
    st.sampled_from(["0.2", "0.35", "0.5", "0.8"]),
)
def test_no_caption_is_given_to_its_own_image_while_others_are_left(
    counts: list[int], seed: int, ratio: str
) -> None:
    starts = np.concatenate([[0], np.cumsum(counts)])
    keys = [f"k{number}" for number in range(len(counts))]
    owners = np.repeat(np.arange(len(counts)), counts)
    people = Population(
        kind="caption",
        hashes=caption_hashes(keys, hash_keys(keys), starts),
        labels=np.empty(0, np.int64),
        num_classes=0,
        texts=np.arange(int(starts[-1])).astype(np.uint64),
        owners=owners,
    )
    count = round(Fraction(ratio) * int(starts[-1]))
    if count == 1:
        return
    [flips] = CaptionSwap().plan(people, [Fraction(ratio)], seed)
    assert len(set(flips.rows.tolist())) == len(flips.rows) == count
    assert sorted(flips.values.tolist()) == sorted(flips.rows.tolist())
    own = int((owners[flips.rows] == owners[flips.values]).sum())
    # Only where one image has more than half of what is left, its captions meet each other.
    largest = max(counts)
    assert own == 0 or count + largest > int(starts[-1])


@pytest.mark.parametrize("cell", [[], [None]])
def test_an_index_with_a_sample_without_a_caption_is_refused(
    cell: list[str | None], by_lists: ShardSet, tmp_path: Path
) -> None:
    with pa.ipc.open_file(Path(by_lists.path) / "index.arrow") as reader:
        table = reader.read_all()
    lists = [cell, *table["caption"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("caption"), "caption", [pa.array(lists, LISTS)])
    with pa.ipc.new_file(tmp_path / "index.arrow", table.schema) as writer:
        writer.write_table(table)
    found = IndexTable(tmp_path / "index.arrow", replace(by_lists.info, index_digests={}))
    with pytest.raises(UserError, match="caption of rows from 0 lacks captions"):
        found.supervision(3, "caption")


def table_of(folder: Path, names: list[str], **columns: list[object]) -> str:
    images = [{"bytes": IMAGES[number], "path": name} for number, name in enumerate(names)]
    pq.write_table(pa.table({"image": images, **columns}), folder / "a.parquet")
    return f"parquet:{folder / 'a.parquet'}"


@pytest.mark.parametrize("column", ["label", "caption"])
def test_images_of_one_name_get_their_keys_from_their_rows(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["image_0001.jpg", "a.jpg", "image_0001.jpg", "b.jpg", "image_0001.jpg"]
    source = table_of(tmp_path, names, **{column: ["u", "v", "w", "v", "u"]})
    run(source, tmp_path / "set", "--noise", "0")
    told = capsys.readouterr().err
    assert "3 of 5 samples share their name with another: the row makes their key\n" in told
    shard_set = ShardSet.open(tmp_path / "set")
    keys = sorted(shard_set.index.column("key").to_pylist())
    assert keys == ["a", "b", "row-000000000", "row-000000002", "row-000000004"]
    assert verify.main([str(tmp_path / "set")]) == 0


def test_two_samples_that_a_column_names_alike_are_still_bad(tmp_path: Path) -> None:
    source = table_of(tmp_path, ["a.jpg", "b.jpg"], key=["k", "k"], caption=["u", "v"])
    with pytest.raises(UserError, match="two samples are both named 'k'"):
        run(source, tmp_path / "set", "--noise", "0")


@pytest.mark.parametrize(
    ("cell", "message"), [([], "no caption"), ([None], "is no text"), (None, "no caption")]
)
def test_a_list_without_a_caption_is_a_bad_sample(
    cell: list[str | None] | None, message: str, tmp_path: Path
) -> None:
    source = table_of(tmp_path, ["a.jpg", "b.jpg"], caption=[["u"], cell])
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "set", "--noise", "0")
