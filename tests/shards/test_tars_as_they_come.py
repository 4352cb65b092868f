"""Tars of others: what is passed over is counted and told, and none of it is unpacked beyond measure."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from nml.errors import UserError
from shards import index
from shards.reader import ShardReader
from shards.shardset import ShardSet
from shards.sources import files
from shards.tarbytes import TarBytes
from shards.verify import verify
from tests.shards.small_sources import IMAGES, check, make_tar, run
from tests.shards.test_damage import foreign_tar

CLASSES = [str(number % 3) for number in range(12)]


def test_members_of_other_kinds_are_counted_and_nothing_is_made_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"README": b"", "__meta__": b"", "deep/._x.jpg": b"", "features/x.npz": b"x"}
    for number in range(4):
        members |= {
            f"{number}.pkl": b"x",
            f"{number}.jpg": IMAGES[number],
            f"{number}.cls": str(number % 2).encode(),
            f"{number}.seg.NPZ": b"x",
        }
    foreign_tar(tmp_path / "tars" / "a.tar", members)
    run(f"webdataset:{tmp_path / 'tars'}", tmp_path / "set")
    told = "passed over 10 members of tars: 5 .npz, 4 .pkl, 1 without an ending"
    assert told in capsys.readouterr().err
    assert ShardSet.open(tmp_path / "set").num_samples == 4
    index.main([str(tmp_path / "tars")])
    assert told in capsys.readouterr().err


def test_compressed_tars_make_the_set_of_the_same_images_and_index_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for name in "ab":
        half = slice(0, 6) if name == "a" else slice(6, 12)
        make_tar(tmp_path / "x.tar", "cls", CLASSES[half], IMAGES[half])
        packed = gzip.compress((tmp_path / "x.tar").read_bytes())
        # As split compression leaves it: two streams, one behind the other, and no end mark of the tar.
        (folder / f"{name}.tar.gz").write_bytes(packed + gzip.compress(b""))
    run(f"webdataset:{folder}", tmp_path / "set")
    check(tmp_path / "set", ("0", "1", "2"))
    keys = ShardSet.open(tmp_path / "set").index.column("key").to_pylist()
    assert {key[0] for key in keys} == {"a", "b"}
    with pytest.raises(UserError, match=r"a\.tar\.gz: cannot be read where it lies"):
        index.main([str(folder)])
    (folder / "a.tar.gz").rename(folder / "a.tar")
    (folder / "b.tar.gz").unlink()
    with pytest.raises(UserError, match=r"a\.tar: cannot be read where it lies"):
        index.main([str(folder)])
    assert "end mark" not in capsys.readouterr().err


def test_a_tar_that_unpacks_to_a_thousand_times_its_size_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(80 << 20)))
    with (
        TarBytes(tmp_path / "bomb.tar.gz") as tar,
        pytest.raises(UserError, match="unpacks to more than 100 times its size"),
    ):
        tar.reach(80 << 20)
    # Nothing is unpacked that is not asked for.
    with TarBytes(tmp_path / "bomb.tar.gz") as tar:
        assert tar.reach(512)
        assert os.fstat(tar.descriptor).st_size <= 2 << 20


def test_a_missing_end_mark_and_what_lies_behind_one_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "x.tar", "cls", CLASSES)
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "tars" / "a.tar").write_bytes(whole + whole)
    (tmp_path / "tars" / "b.tar").write_bytes(whole.rstrip(b"\0") + bytes(511))
    run(f"webdataset:{tmp_path / 'tars'}", tmp_path / "set")
    told = capsys.readouterr().err
    assert "1 tars end without an end mark: they were read to their end, and may be cut short; " in told
    assert "1 tars hold more behind their end mark, which was not read" in told
    assert ShardSet.open(tmp_path / "set").num_samples == 24


def test_what_cannot_be_read_in_the_middle_of_a_source_is_a_defect_of_the_pass(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(b"no tar at all" * 100)
    make_tar(tmp_path / "tars" / "1.tar", "cls", CLASSES)
    make_tar(tmp_path / "tars" / "2.tar", "cls", CLASSES)
    cut = tmp_path / "tars" / "2.tar"
    cut.write_bytes(cut.read_bytes()[:6000])
    make_tar(tmp_path / "tars" / "3.tar", "cls", CLASSES)
    tables = tmp_path / "tables"
    tables.mkdir()
    for number in range(12):
        (tables / f"{number}.jpg").write_bytes(IMAGES[number])
    for name in "ab":
        lines = [f"{name}{number},{number}.jpg,{number % 3}" for number in range(12)]
        (tables / f"{name}.csv").write_text("\n".join(["key,file,label", *lines]))
    (tables / "aa.csv").write_bytes(b"key,file,label\nz,1.jpg,0\nc\xe9,1.jpg,1\n")
    for source, samples, kinds in (
        ("webdataset:tars", 25, r"2 unreadable tar\)"),
        ("csv:tables", 24, r"1 unreadable file\)"),
    ):
        name, _, folder = source.partition(":")
        out, count = tmp_path / name, int(kinds[0])
        with pytest.raises(UserError, match=kinds if count > 1 else "cannot be read"):
            run(f"{name}:{tmp_path / folder}", out)
        run(f"{name}:{tmp_path / folder}", out, "--skip-bad", str(count))
        assert ShardSet.open(out).num_samples == samples


def test_folders_that_lead_back_or_cannot_be_read_are_defects_too(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"imagefolder:{image_folder}", tmp_path / "right")
    (image_folder / "cat" / "again").symlink_to("../cat")
    (image_folder / "dog" / "shut").mkdir()
    scandir = os.scandir

    def shut(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(UserError, match=r"2 of 14 samples are bad \(1 endless link, 1 unreadable folder\)"):
        run(f"imagefolder:{image_folder}", tmp_path / "set")
    run(f"imagefolder:{image_folder}", tmp_path / "set", "--skip-bad", "2")
    assert ShardSet.open(tmp_path / "set").fingerprint == ShardSet.open(tmp_path / "right").fingerprint


def test_names_that_are_no_utf8_are_told_in_one_line_wherever_they_stand(tmp_path: Path) -> None:
    place = tmp_path / "caf\udce9"
    (place / "cat").mkdir(parents=True)
    (place / "cat" / "1.jpg").write_bytes(IMAGES[0])
    (place / "x.csv").write_text("file,label\ncat/1.jpg,0\n")
    make_tar(place / "x.tar", "cls", CLASSES)
    for source in (f"imagefolder:{place}", f"csv:{place / 'x.csv'}", f"wds:{place / 'x.tar'}"):
        with pytest.raises(UserError, match=r"the name .* is no UTF-8"):
            run(source, tmp_path / "set")
    for refused in (lambda: run("digits", place / "set"), lambda: index.main([str(place)])):
        with pytest.raises(UserError, match="the name is no UTF-8"):
            refused()


def test_captions_of_chosen_members_are_read(tmp_path: Path) -> None:
    members = {}
    for number in range(4):
        members |= {
            f"{number}.input.jpg": IMAGES[number],
            f"{number}.target.jpg": IMAGES[0],
            f"{number}.inputs.txt": b"wrong",
            f"{number}.outputs.txt": f"caption {number}".encode(),
        }
    foreign_tar(tmp_path / "a.tar", members)
    chosen = ["--members", "image=input.jpg,caption=outputs.txt", "--noise", "0.5"]
    run(f"wds:{tmp_path / 'a.tar'}", tmp_path / "set", *chosen)
    shard_set = ShardSet.open(tmp_path / "set")
    assert sorted(shard_set.index.column("caption").to_pylist()) == [f"caption {n}" for n in range(4)]
    index.main([str(tmp_path / "a.tar"), "--out", str(tmp_path / "sidecar"), *chosen[:2]])
    sidecar = ShardSet.open(tmp_path / "sidecar")
    assert sidecar.index.column("caption").to_pylist() == [f"caption {n}" for n in range(4)]
    assert [ShardReader(sidecar).image(sample)[1] for sample in range(4)] == IMAGES[:4]
    assert not [finding for finding in verify(tmp_path / "sidecar") if finding.problem]
    for wrong, told in (("input.jpg", "'input.jpg' does not name"), ("image=a,label=b,caption=c", "twice")):
        with pytest.raises(UserError, match=told):
            run(f"wds:{tmp_path / 'a.tar'}", tmp_path / "other", "--members", wrong)
    with pytest.raises(UserError, match="the csv source has no members"):
        run(f"csv:{tmp_path / 'a.csv'}", tmp_path / "other", "--members", "image=a")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{08..11}", ["x-08", "x-09", "x-10", "x-11"]),
        ("{a,b{1..2}}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("{0..1,07}/{x,y}", ["0/x", "0/y", "1/x", "1/y", "07/x", "07/y"]),
        ("a{b}c{}", ["a{b}c{}"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert files.expand(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..60}{0..1}"])
def test_braces_that_name_no_end_of_files_are_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_FILES", 100)
    with pytest.raises(UserError, match="files"):
        files.expand(pattern)
