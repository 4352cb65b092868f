"""Whoever vouches for a set anew has checked what it was made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.files import sha256_file
from shards import index, verify, writing
from shards.relabel import relabel
from shards.shardset import ShardSet
from shards.sources import open_source
from shards.tarwalk import walk
from shards.writing import write_set
from tests.shards.damage_grid import draw, faults, read
from tests.shards.small_sources import IMAGES, LABELS, make_tar
from tests.shards.test_damage import flip_byte, foreign_tar


@pytest.fixture
def small(tmp_path: Path, written: Callable, requested: Callable) -> Path:
    make_tar(tmp_path / "source.tar", "cls", [str(label) for label in LABELS])
    return Path(
        written(tmp_path / "set", requested(f"webdataset:{tmp_path / 'source.tar'}", "0", "0.25")).path
    )


def test_every_damage_is_found_and_refused_and_changes_no_label(small: Path) -> None:
    expected = read(small)
    for damage in draw(small, 40, seed=1):
        assert faults(small, damage, expected) == [], damage


def test_what_changes_no_value_of_a_description_is_found_too(small: Path) -> None:
    for name in ("set.json", "stats.json"):
        content = (small / name).read_bytes()
        (small / name).write_bytes(content.rstrip())
        assert [finding.name for finding in verify.verify(small) if finding.problem]
        with pytest.raises(UserError, match="the set is damaged"):
            relabel(small, [Fraction("0.5")], None, None, None)
        (small / name).write_bytes(content)


def test_images_that_nobody_can_decode_are_found_only_by_decoding(
    image_folder: Path, tmp_path: Path, written: Callable, requested: Callable, capsys: pytest.CaptureFixture
) -> None:
    (image_folder / "cat" / "00.jpg").write_bytes(IMAGES[0][:400])
    folder = Path(written(tmp_path / "set", requested(f"imagefolder:{image_folder}", "0")).path)
    assert verify.main([str(folder)]) == 0
    assert verify.main([str(folder), "--decode"]) == 1
    assert "1 images cannot be decoded, the first of them cat_00:" in capsys.readouterr().out


def test_an_interrupted_relabel_is_finished_by_whoever_adds_the_next_level(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace
    moved = []

    def killed(self: Path, target: Path) -> Path:
        # The first of the new files is moved into place; then the process dies.
        if self.suffix == ".next":
            moved.append(self)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            relabel(small, [Fraction("0.5")], None, None, None)
    assert "n50" not in ShardSet.open(small).levels
    assert next(finding.name for finding in verify.verify(small) if finding.problem) == "levels"
    again = Path(shutil.copytree(small, tmp_path / "again"))
    relabel(small, [Fraction("0.4")], None, None, None)
    assert set(ShardSet.open(small).info.levels) == {"n25", "n50", "n40"}
    _, [level] = relabel(again, [Fraction("0.5")], None, None, None)
    assert level.name == "n50"
    for folder in (small, again):
        assert not [finding for finding in verify.verify(folder) if finding.problem]


def test_a_damaged_set_is_no_source(small: Path, tmp_path: Path) -> None:
    shard = small / "shard-000000.tar"
    members = list(walk(shard))
    for member, told in ((members[0], "does not match its SHA-256"), (members[1], "not labelled as it was")):
        content = shard.read_bytes()
        flip_byte(shard, member.offset)
        with pytest.raises(UserError, match=told):
            list(open_source(f"webdataset:{small}"))
        shard.write_bytes(content)
    assert len(list(open_source(f"webdataset:{small}"))) == len(IMAGES)


@pytest.fixture
def interrupted(
    image_folder: Path, tmp_path: Path, requested: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """A write that stops when all shards are there; returns what writes on and gives the manifest's hash."""
    request = requested(f"imagefolder:{image_folder}", "0", "0.25")

    def write() -> str:
        write_set(tmp_path / "set", request, lambda: open_source(request.source), workers=1)
        return sha256_file(tmp_path / "set" / "manifest.parquet")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            write()
    return write


def test_a_damaged_record_of_a_finished_shard_is_packed_again(
    interrupted: Callable, tmp_path: Path, image_folder: Path, written: Callable, requested: Callable
) -> None:
    whole = written(tmp_path / "whole", requested(f"imagefolder:{image_folder}", "0", "0.25"))
    record = tmp_path / "set" / ".writing" / "shard-000000.arrow"
    place = record.read_bytes().index(whole.index.place(0).sha256)
    flip_byte(record, place)
    assert interrupted() == whole.manifest_sha256


@pytest.mark.parametrize("name", ["plan.json", "rows.npy", "rows.bin"])
def test_a_damaged_plan_is_refused(interrupted: Callable, tmp_path: Path, name: str) -> None:
    path = tmp_path / "set" / ".writing" / name
    content = path.read_bytes()
    # So that its shard is packed again.
    path.with_name("shard-000000.arrow").unlink()
    for damaged in (content[:-2], content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"plan of an interrupted write is damaged: .*{name}"):
            interrupted()
    path.write_bytes(content)
    assert len(interrupted()) == 64


def test_tars_that_would_fail_verification_are_not_indexed(tmp_path: Path) -> None:
    foreign_tar(tmp_path / "empty" / "a.tar", {"x.jpg": b"", "x.cls": b"0"})
    with pytest.raises(UserError, match="the image of sample 'x' has 0 bytes"):
        index.main([str(tmp_path / "empty")])
    names = ("x.jpg", "x.cls", "y.jpg", "y.cls")
    foreign_tar(tmp_path / "twice" / "a.tar", dict.fromkeys(names, b"0"))
    with (tmp_path / "twice" / "a.tar").open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content[:2048] + content[:2048] + content[4096:])
    with pytest.raises(UserError, match=r"two samples have the key 'a_x': a\.tar/x and a\.tar/x"):
        index.main([str(tmp_path / "twice")])
    # What was found of each tar is kept for when the others are mended.
    assert {path.name for path in (tmp_path / "twice").iterdir()} == {"a.tar", ".indexing"}
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["a.tar"]
