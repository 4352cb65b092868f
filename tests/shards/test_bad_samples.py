"""Every sample that cannot be taken is found in one pass, and what is left is exact."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.levels import level_ratio
from shards import write
from shards.defects import Checks, Defect, settle
from shards.noise import exact_count
from shards.shardset import ShardSet
from shards.verify import verify
from tests.shards.hostile_images import png_bomb
from tests.shards.small_sources import IMAGES, make_tar, run
from tests.shards.test_damage import foreign_tar

KINDS = {
    "bad class": 4,
    "bad row": 2,
    "duplicate key": 2,
    "empty image": 2,
    "no class": 2,
    "no image": 2,
    "undecodable image": 4,
    "unreadable image": 2,
}


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    """A table of 1,000 images; the last 20 have, in pairs, ten kinds of defects."""
    files = {
        "good.jpg": IMAGES[0],
        "empty.jpg": b"",
        "html.jpg": b"<html>404</html>",
        "cut.jpg": IMAGES[1][:400],
        "bomb.png": png_bomb(50_000, 50_000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = [[f"k{number}", "good.jpg", str(number % 10)] for number in range(980)]
    for pair in range(2):
        name = f"bad{pair}"
        rows += [
            [f"{name}-0", "empty.jpg", "1"],
            [f"{name}-1", "html.jpg", "1"],
            [f"{name}-2", "cut.jpg", "1"],
            [f"{name}-3", "bomb.png", "1"],
            [f"{name}-4", "gone.jpg", "1"],
            [f"{name}-5", "good.jpg", ""],
            [f"{name}-6", "good.jpg", "2.5"],
            [f"{name}-7", "good.jpg", "-1"],
            [f"k{pair}", "good.jpg", "1"],
            [f"{name}-9", "good.jpg"],
        ]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "filepath", "label"], *rows])
    return tmp_path / "table.csv"


def test_a_thousand_images_with_twenty_defects_are_told_in_one_pass_and_written_without_them(
    thousand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "set"
    command = ["--source", f"csv:{thousand}", "--noise", "0.05", "0.2", "--out", str(out), "--decode-check"]
    command += ["--workers", "1"]
    for allowed in ([], ["--skip-bad", "19"]):
        with pytest.raises(
            UserError, match=r"20 of 1,000 samples are bad .*leave them out with --skip-bad 20"
        ):
            write.main([*command, *allowed])
        assert [path.name for path in out.parent.iterdir()] == ["set.bad.csv"]
    write.main([*command, "--skip-bad", "20"])
    told = capsys.readouterr().err
    with (out.parent / "set.bad.csv").open(newline="") as file:
        listed = [row["kind"] for row in csv.DictReader(file)]
    assert {kind: listed.count(kind) for kind in set(listed)} == KINDS
    assert all(f"{count} {kind}" in told for kind, count in KINDS.items())
    shard_set = ShardSet.open(out)
    assert shard_set.num_samples == 980
    assert set(shard_set.index.column("key").to_pylist()) == {f"k{number}" for number in range(980)}
    for level in shard_set.info.levels.values():
        assert level.flipped == exact_count(level_ratio(level.name), 980)
    assert not [finding for finding in verify(out, decode=True) if finding.problem]
    # Found done, and not to be had with another allowance.
    write.main([*command, "--skip-bad", "20"])
    with pytest.raises(UserError, match="written with other options"):
        write.main([*command, "--skip-bad", "21"])


def test_what_is_left_of_a_folder_is_written_as_if_the_rest_had_never_been_there(
    image_folder: Path, tmp_path: Path
) -> None:
    run(f"imagefolder:{image_folder}", tmp_path / "right")
    (image_folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(image_folder / "cat" / "zero.jpg")
    Path(str(image_folder / "dog" / "caf\udce9.jpg")).write_bytes(IMAGES[0])
    with pytest.raises(UserError, match=r"3 of 15 samples are bad \(.*1 bad name"):
        run(f"imagefolder:{image_folder}", tmp_path / "set")
    run(f"imagefolder:{image_folder}", tmp_path / "set", "--skip-bad", "3")
    assert (tmp_path / "set.bad.csv").exists()
    right, left = ShardSet.open(tmp_path / "right"), ShardSet.open(tmp_path / "set")
    assert left.fingerprint == right.fingerprint


def test_bad_samples_of_tars_are_listed(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "a.tar", "cls", [str(number % 3) for number in range(12)])
    members = {
        "x.jpg": IMAGES[0],
        "y.cls": b"1",
        "z.jpg": IMAGES[1],
        "z.cls": b"1.5",
        "v.jpg": b"",
        "v.cls": b"0",
    }
    foreign_tar(tmp_path / "tars" / "b.tar", members)
    with pytest.raises(UserError, match=r"4 of 16 .*\(2 no class, 1 missing image, 1 empty image\)"):
        run(f"webdataset:{tmp_path / 'tars'}", tmp_path / "set")
    run(f"webdataset:{tmp_path / 'tars'}", tmp_path / "set", "--skip-bad", "4")
    assert ShardSet.open(tmp_path / "set").num_samples == 12


@pytest.mark.parametrize(("bad", "mend"), [(1, "leave it out with --skip-bad 1"), (2, "mend them, or leave")])
def test_a_defect_without_a_mend_of_its_own_says_how_to_leave_it_out(
    bad: int, mend: str, tmp_path: Path
) -> None:
    defects = [Defect(str(number), "bad class", UserError("has class 7")) for number in range(bad)]
    with pytest.raises(UserError) as refused:
        settle(defects, 10, Checks(file=tmp_path / "bad.csv"))
    assert refused.value.mend.startswith(mend)
