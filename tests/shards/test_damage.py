"""Damaged and hostile sets: a clear error or a counted skip, never a hang and never a wrong label."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from nml import digits
from nml.errors import UserError
from shards import index, verify
from shards.augment import RandomResizedCrop
from shards.dataset import ShardDataset
from shards.index_table import Place
from shards.reader import DamagedSample, ShardReader, read_ledger
from shards.sampler import ElasticBatchSampler, SampleRef
from shards.shardset import ShardSet
from shards.tarwalk import walk
from tests.shards.hostile_images import jpeg_bomb, png_bomb
from tests.shards.loaders import batches


@pytest.fixture
def copied(digits_set: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_set.path, tmp_path / "copy"))


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def place_of(folder: Path, sample: int) -> tuple[Path, int]:
    place = ShardSet.open(folder).index.place(sample)
    return folder / f"shard-{place.shard:06d}.tar", place.offset


def test_a_flipped_byte_is_an_error_that_names_the_sample(copied: Path) -> None:
    path, offset = place_of(copied, 17)
    flip_byte(path, offset + 500)
    dataset = ShardDataset(ShardSet.open(copied))
    _ = dataset[16]
    with pytest.raises(
        UserError, match=r"digit-\d+ of shard-000000\.tar: the image does not match its SHA-256"
    ):
        _ = dataset[17]


@pytest.mark.parametrize(
    "transform", [RandomResizedCrop(size=8), lambda image: image.rotate(random.random())]
)
def test_views_of_a_batch_are_what_each_is_alone_and_read_once(
    transform: Callable[[Image.Image], object], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_byte(*place_of(copied, 5))
    dataset = ShardDataset(ShardSet.open(copied), "n20", transform, skip_budget=1, with_truth=True)
    # Number 6 stands in for number 5.
    refs = [SampleRef(sample, 1, view) for view in range(3) for sample in (5, 9, 6)]
    expected = [dataset[ref] for ref in refs]
    read, reads = ShardReader.image, []

    def counted(reader: ShardReader, sample: int) -> tuple[Place, bytes]:
        reads.append(sample)
        return read(reader, sample)

    monkeypatch.setattr(ShardReader, "image", counted)
    for sample, alone in zip(dataset.__getitems__(refs), expected, strict=True):
        assert sample[1:] == alone[1:]
        assert np.array_equal(sample.image, alone.image)
    assert sorted(reads) == [5, 5, 5, 6, 6, 9]


def test_a_damaged_sample_is_skipped_within_the_budget_and_written_down(copied: Path, tmp_path: Path) -> None:
    path, offset = place_of(copied, 17)
    flip_byte(path, offset + 500)
    ledger = tmp_path / "skips" / "ledger.jsonl"
    shard_set = ShardSet.open(copied)
    dataset = ShardDataset(shard_set, "n30", skip_budget=0.001, ledger=ledger)
    clean = dict(zip(digits.load("train").keys, digits.load("train").labels.tolist(), strict=True))
    stand_in = dataset[17]
    assert stand_in.index == 18
    assert stand_in.target == dataset[18].target
    assert ShardDataset(shard_set)[18].target == clean[shard_set.index.place(18).key]
    _ = dataset[17]
    entries = read_ledger(ledger)
    assert [(entry["key"], entry["shard"]) for entry in entries] == [
        (shard_set.index.place(17).key, "shard-000000.tar")
    ]


def test_workers_share_one_budget_through_the_ledger(copied: Path, tmp_path: Path) -> None:
    for sample in (5, 205, 405):
        path, offset = place_of(copied, sample)
        flip_byte(path, offset + 500)
    shard_set = ShardSet.open(copied)
    sampler = ElasticBatchSampler(shard_set, global_batch=32, streams=8, tail="repeat")

    def run(budget: float, ledger: str) -> None:
        dataset = ShardDataset(shard_set, transform=size_of, skip_budget=budget, ledger=tmp_path / ledger)
        list(batches(DataLoader(dataset, batch_sampler=sampler, num_workers=2, collate_fn=len)))

    run(3 / 1259 + 1e-9, "enough")
    assert len({entry["key"] for entry in read_ledger(tmp_path / "enough")}) == 3
    with pytest.raises(UserError, match="the budget is 2"):
        run(2 / 1259 + 1e-9, "short")


def test_a_truncated_shard_is_refused_when_the_set_is_opened(copied: Path) -> None:
    shard = copied / "shard-000004.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 5000)
    with pytest.raises(UserError, match=r"shard-000004\.tar: has [\d,]+ bytes, set\.json says"):
        ShardSet.open(copied)


def test_a_shard_cut_short_while_reading_is_a_damaged_sample(copied: Path) -> None:
    dataset = ShardDataset(ShardSet.open(copied))
    with (copied / "shard-000006.tar").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(UserError, match="the shard ends after 0 of"):
        _ = dataset[1258]


def test_a_deleted_shard_is_named(copied: Path) -> None:
    (copied / "shard-000002.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000002\.tar: is missing"):
        ShardSet.open(copied)


def test_an_index_of_another_set_is_refused(
    copied: Path, tmp_path: Path, written: Callable, requested: Callable
) -> None:
    other = written(tmp_path / "other", requested("digits", "0", "0.1", "0.2", "0.3", seed=9))
    shutil.copy(Path(other.path) / "index.arrow", copied / "index.arrow")
    with pytest.raises(UserError, match="belongs to another set"):
        ShardDataset(ShardSet.open(copied))


def test_a_manifest_of_another_set_fails_verification(
    copied: Path, tmp_path: Path, written: Callable, requested: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path / "other", requested("digits", "0", "0.1", "0.2", "0.3", seed=9))
    shutil.copy(Path(other.path) / "manifest.parquet", copied / "manifest.parquet")
    assert verify.main([str(copied)]) == 1
    printed = capsys.readouterr().out
    assert "WRONG manifest hash" in printed
    assert "WRONG fingerprint" in printed


@pytest.mark.parametrize("damage", ["image", "label", "json", "header"])
def test_verification_finds_one_flipped_byte_anywhere(
    copied: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    members = list(walk(copied / "shard-000001.tar"))
    offset = {
        "image": members[30].offset + 700,
        "label": members[31].offset,
        "json": members[32].offset + 12,
        "header": members[33].offset - 512 + 110,
    }[damage]
    flip_byte(copied / "shard-000001.tar", offset)
    assert verify.main([str(copied)]) == 1
    assert "WRONG shard-000001.tar content" in capsys.readouterr().out


def test_verification_finds_a_changed_level(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(copied / "manifest.parquet")
    labels = table["label_n10"].to_pylist()
    labels[0] = (labels[0] + 1) % 10
    column = table.column_names.index("label_n10")
    pq.write_table(
        table.set_column(column, "label_n10", pa.array(labels, pa.int32())), copied / "manifest.parquet"
    )
    assert verify.main([str(copied), "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG n10 count" in printed or "WRONG n10 nested" in printed


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "nml-shards/2"}', b"\xff\xfe"])
def test_a_damaged_set_file_is_one_line(copied: Path, content: bytes) -> None:
    (copied / "set.json").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.json: (damaged|format)"):
        ShardSet.open(copied)


def test_a_damaged_index_is_one_line(copied: Path) -> None:
    (copied / "index.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(UserError, match=r"index\.arrow: damaged or missing"):
        ShardDataset(ShardSet.open(copied))


def test_a_folder_without_a_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shard set there .*shards\.write .*shards\.index"):
        ShardSet.open(tmp_path)


def test_a_missing_level_names_those_there_and_the_mend(digits_set: ShardSet) -> None:
    with pytest.raises(UserError, match=r"0\.1 \(n10\).*shards\.relabel .* --noise 0\.15"):
        digits_set.level(0.15)


def size_of(image: Image.Image) -> tuple[int, int]:
    return image.size


def foreign_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "bomb"),
    [("png", png_bomb(50_000, 50_000)), ("jpg", jpeg_bomb(50_000, 50_000))],
    ids=["png", "jpg"],
)
def test_a_pixel_bomb_is_refused_before_decoding(tmp_path: Path, name: str, bomb: bytes) -> None:
    foreign_tar(tmp_path / "set" / "a.tar", {f"x.{name}": bomb, "x.cls": b"0"})
    index.main([str(tmp_path / "set")])
    dataset = ShardDataset(ShardSet.open(tmp_path / "set"))
    with pytest.raises(UserError, match=r"sample x of a\.tar: .*(50000 x 50000|2500000000) pixels"):
        _ = dataset[0]


def test_bytes_that_are_no_image_are_a_damaged_sample(tmp_path: Path) -> None:
    foreign_tar(tmp_path / "set" / "a.tar", {"x.jpg": b"<html>404</html>", "x.cls": b"0"})
    index.main([str(tmp_path / "set")])
    with pytest.raises(UserError, match="no image of JPEG, PNG"):
        _ = ShardDataset(ShardSet.open(tmp_path / "set"))[0]


def hostile(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        if kind == "outside":
            tar.addfile(tarfile.TarInfo("../x.jpg"))
        elif kind == "absolute":
            tar.addfile(tarfile.TarInfo("/etc/x.jpg"))
        else:
            member = tarfile.TarInfo("x.jpg")
            member.type = {
                "symlink": tarfile.SYMTYPE,
                "hard link": tarfile.LNKTYPE,
                "device": tarfile.CHRTYPE,
            }[kind]
            member.linkname = "/etc/passwd"
            tar.addfile(member)


@pytest.mark.parametrize("kind", ["outside", "absolute", "symlink", "hard link", "device"])
def test_a_tar_with_a_hostile_member_is_refused(tmp_path: Path, kind: str) -> None:
    hostile(tmp_path / "set" / "a.tar", kind)
    with pytest.raises(UserError, match=r"a\.tar: member '.*' (lies outside|is )"):
        index.main([str(tmp_path / "set")])
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["a.tar"]


@pytest.mark.parametrize("keep", [100, 512 * 3 + 100, 512 * 4])
def test_a_foreign_tar_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "set" / "a.tar"
    foreign_tar(path, {"x.jpg": bytes(2000), "x.cls": b"0", "y.jpg": bytes(2000), "y.cls": b"1"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged at byte"):
        index.main([str(tmp_path / "set")])


def test_a_damaged_sample_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DamagedSample("k", "s.tar", "torn")))
    assert (error.key, error.shard, error.reason) == ("k", "s.tar", "torn")


def test_nothing_on_the_reading_path_unpickles_or_evaluates() -> None:
    import shards

    folder = Path(shards.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for word in ("pickle.load", "import pickle", "eval(", "exec(", "shell=True", "allow_pickle=True"):
            assert word not in text, f"{path.name} holds {word}"


def test_the_ledger_ignores_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text(json.dumps({"key": "a", "shard": "s", "reason": "r"}) + '\n{"key": "b')
    assert [entry["key"] for entry in read_ledger(path)] == ["a"]
