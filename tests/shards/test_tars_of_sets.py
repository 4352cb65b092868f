"""The tars of a set that are read as if they were anybody's: noisy labels never come out as clean ones."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from nml.sources import SourceSpec
from shards import finish, index, pack, plan, relabel, write
from shards.shardset import ShardSet
from shards.sources.webdataset import WebDatasetSource
from tests.shards.small_sources import LABELS, make_tar

CLASSES = list(map(str, LABELS))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with one foreign tar."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    make_tar(folder / "a.tar", "cls", CLASSES)
    return folder


@pytest.fixture
def asked(foreign: Path) -> list[str]:
    """What asks for a set whose ``.cls`` members hold a noisy level."""
    return ["--source", f"wds:{foreign}", "--noise", "0.25", "--max-shard-count", "4"]


@pytest.fixture
def noisy(asked: list[str], tmp_path: Path) -> Path:
    """That set."""
    out = tmp_path / "noisy"
    write.main([*asked, "--out", str(out)])
    return out


def test_a_set_that_is_being_written_is_neither_indexed_nor_a_source(
    asked: list[str], foreign: Path, tmp_path: Path
) -> None:
    out, side = tmp_path / "out", tmp_path / "side"
    plan.main([*asked, "--out", str(out)])
    pack.main([str(out), "--part", "1/2", "--workers", "1"])
    first = str(out / "shard-000000.tar")
    for arguments in (
        [str(out)],
        [str(out), "--part", "1/2"],
        *([place, "--out", str(side)] for place in (str(out), f"file://{out}", first)),
    ):
        with pytest.raises(UserError, match="writing was interrupted"):
            index.main(arguments)
    with pytest.raises(UserError, match="writing was interrupted"):
        write.main(["--source", f"wds:{out}", "--out", str(side)])
    with pytest.raises(UserError, match="writing was interrupted"):
        index.main([str(foreign), "--out", str(out)])
    assert not side.exists()
    pack.main([str(out), "--workers", "1"])
    finish.main([str(out)])
    assert ShardSet.open(out).num_samples == 12


def test_tars_without_the_set_json_that_tells_their_level_are_refused_with_a_mend_that_works(
    noisy: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for tar in noisy.glob("*.tar"):
        shutil.copy(tar, alone)
    for run in (
        lambda: index.main([str(alone)]),
        lambda: write.main(["--source", f"wds:{alone}", "--out", str(tmp_path / "copy")]),
    ):
        with pytest.raises(UserError, match=r"noisy level \(label_n25\)") as refused:
            run()
        assert "--label-column label" in str(refused.value.mend)
    index.main([str(alone), "--label-column", "label"])
    clean, found = (
        sorted(pq.read_table(each / "manifest.parquet", columns=["sha256", "label"]).to_pylist(), key=str)
        for each in (noisy, alone)
    )
    assert found == clean


def test_copies_of_noisy_labels_stay_noisy(noisy: Path, tmp_path: Path) -> None:
    copy, side = tmp_path / "copy", tmp_path / "side"
    write.main(["--source", f"wds:{noisy}", "--out", str(copy)])
    index.main([str(noisy / "shard-000000.tar"), "--out", str(side)])
    for refused in (
        lambda: write.main(["--source", f"wds:{copy}", "--noise", "0.1", "--out", str(tmp_path / "again")]),
        lambda: relabel.main([str(side), "--noise", "0.1"]),
    ):
        with pytest.raises(UserError, match=r"already noisy \(n25\)"):
            refused()


def test_a_set_among_other_tars_is_refused(noisy: Path, tmp_path: Path) -> None:
    for names in ("foreign/a,noisy/shard-000000", "noisy/shard-000000,foreign/a"):
        place = f"{tmp_path}/{{{names}}}.tar"
        with pytest.raises(UserError, match="is a shard set among other tars"):
            write.main(["--source", f"wds:{place}", "--out", str(tmp_path / "out")])


def test_an_index_that_numbered_classes_anew_leaves_its_tars_a_source(tmp_path: Path) -> None:
    folder, out = tmp_path / "tars", tmp_path / "out"
    folder.mkdir()
    make_tar(folder / "a.tar", "cls", ["500", "1", "9999"] * 4)
    index.main([str(folder)])
    write.main(["--source", f"wds:{folder}", "--noise", "0", "--out", str(out)])
    assert ShardSet.open(out).classes == ShardSet.open(folder).classes == ("1", "500", "9999")


def test_the_mend_for_a_set_that_is_indexed_again_does_not_drop_its_levels(noisy: Path) -> None:
    with pytest.raises(UserError, match="is a shard set already") as refused:
        index.main([str(noisy)])
    assert "remove" not in str(refused.value.mend)


def test_fields_of_others_that_look_like_levels_are_nobodys(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        record = json.dumps({"label": 1, "label_name": "cat", "url": "x"}).encode()
        for name, content in (("a.jpg", b"\xff\xd8\xff"), ("a.cls", b"1"), ("a.json", record)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    assert WebDatasetSource(SourceSpec(text="wds", name="wds", argument=str(tar))).kind == "class"
