"""A set that is planned once and packed by many processes: the bytes of one, whatever happens to them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.files import sha256_file
from shards import finish, pack, plan, write
from shards.writing import Part
from tests.commands import Command
from tests.shards.small_sources import make_tar

ARGUMENTS = ["--source", "digits", "--noise", "0", "0.2", "--max-shard-count", "21"]
SHARDS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the files of the set that one process writes."""
    out = tmp_path_factory.mktemp("whole") / "set"
    write.main([*ARGUMENTS, "--workers", "1", "--out", str(out)])
    return hashes(out)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def packed(out: Path, part: Part) -> int:
    """How many shards of a part are finished."""
    return sum((out / ".writing" / f"shard-{number:06d}.arrow").exists() for number in part.of(SHARDS))


def test_killed_parts_and_two_of_the_same_part_end_with_the_bytes_of_one_process(
    tmp_path: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    plan.main([*ARGUMENTS, "--out", str(out)])
    assert f"1,259 samples in {SHARDS} shards" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"{SHARDS} of {SHARDS} shards are not packed yet"):
        finish.main([str(out)])
    parts = [Part(1, 3), Part(2, 3), Part(3, 3), Part(3, 3)]

    def started(part: Part) -> Command:
        words = (str(out), "--part", f"{part.number}/{part.count}", "--workers", "1")
        return Command("shards.pack", *words, cwd=tmp_path)

    for part in parts[:3]:
        begun = started(part)
        while begun.running() and not packed(out, part):
            time.sleep(0.0005)
        assert begun.process.pid
        os.kill(begun.process.pid, signal.SIGKILL)
        assert begun.end().returncode == -9
    with pytest.raises(UserError, match=r"not packed yet, of part 1/3, 2/3, 3/3; .*--part 1/3 and so"):
        finish.main([str(out)])
    ended = [each.end() for each in [started(part) for part in parts]]
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 4
    finish.main([str(out)])
    assert hashes(out) == whole


def test_each_step_again_finds_the_set_done(
    tmp_path: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    for _ in range(2):
        plan.main([*ARGUMENTS, "--out", str(out)])
        pack.main([str(out), "--workers", "1"])
    assert "1,259 samples, 0 packed now" in capsys.readouterr().out
    finish.main([str(out)])
    capsys.readouterr()
    plan.main([*ARGUMENTS, "--out", str(out)])
    pack.main([str(out), "--part", "2/2"])
    finish.main([str(out)])
    write.main([*ARGUMENTS, "--out", str(out)])
    assert capsys.readouterr().out.count("nothing to do") == 4
    assert hashes(out) == whole


def test_a_lost_shard_and_a_damaged_record_are_missing_and_packed_again(
    tmp_path: Path, whole: dict[str, str]
) -> None:
    out = tmp_path / "set"
    plan.main([*ARGUMENTS, "--out", str(out)])
    pack.main([str(out), "--workers", "1", "--part", "1/2"])
    pack.main([str(out), "--workers", "1", "--part", "2/2"])
    (out / "shard-000004.tar").unlink()
    record = out / ".writing" / "shard-000007.arrow"
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"2 of 60 shards are not packed yet, of part 1/2, 2/2"):
        finish.main([str(out)])
    write.main([*ARGUMENTS, "--workers", "1", "--out", str(out)])
    assert hashes(out) == whole


def test_another_folder_packs_what_was_planned_with_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "a.tar", "cls", ["0", "1"] * 6)
    monkeypatch.chdir(tmp_path)
    plan.main(["--source", "webdataset:a.tar", "--out", "set"])
    monkeypatch.chdir("/")
    pack.main([str(tmp_path / "set"), "--workers", "1"])
    finish.main([str(tmp_path / "set")])


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_what_is_no_part_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(UserError, match=r"--part .*: not a part; possible: 1/8 to 8/8"):
        pack.main([str(tmp_path), "--part", part])


def test_without_a_plan_there_is_nothing_to_pack(tmp_path: Path) -> None:
    for command in (pack, finish):
        with pytest.raises(UserError, match=r"no plan of a shard set there; make one: .*shards\.plan"):
            command.main([str(tmp_path / "set")])
        assert not (tmp_path / "set").exists()
