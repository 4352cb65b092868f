"""Indexing by parts and after kills: the files of one undisturbed call, and no tar walked twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from nml.files import sha256_file
from shards import index
from tests.commands import Command
from tests.shards.small_sources import IMAGES, LABELS, make_tar

TARS = 12


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Tars that each count from 0, so that keys need their names."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(TARS):
        make_tar(folder / f"{number:02d}.tar", "cls", list(map(str, LABELS)), IMAGES)
    return folder


def described(folder: Path) -> dict[str, str]:
    """The hashes of what describes a set."""
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.suffix != ".tar"}


@pytest.fixture
def whole(tars: Path, tmp_path: Path) -> dict[str, str]:
    # The same path as the others: the set records it.
    index.main([str(tars)])
    found = described(tars)
    for name in found:
        (tars / name).unlink()
    return found


def records(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / ".indexing").glob("*.arrow")}


def test_parts_and_a_killed_call_end_with_the_files_of_one_call(
    tars: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.main([str(tars), "--part", "2/3"])
    assert "part 2/3: 4 tars indexed" in capsys.readouterr().out
    assert set(records(tars)) == {f"{number:02d}.tar.arrow" for number in range(1, TARS, 3)}
    killed = Command("shards.index", str(tars), "--workers", "1", cwd=tmp_path)
    while killed.running() and len(records(tars)) < 6:
        time.sleep(0.0005)
    assert killed.process.pid
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.end().returncode == -9
    assert not (tars / "set.json").exists()
    before = records(tars)
    index.main([str(tars), "--part", "1/1"])
    assert before.items() <= records(tars).items()
    index.main([str(tars)])
    assert described(tars) == whole


def test_a_changed_tar_and_a_damaged_record_are_walked_again(tars: Path, whole: dict[str, str]) -> None:
    shutil.copy(tars / "00.tar", tars / "keep")
    make_tar(tars / "00.tar", "cls", ["2"] * len(LABELS), IMAGES)
    index.main([str(tars), "--part", "1/1"])
    (tars / "keep").rename(tars / "00.tar")
    record = tars / ".indexing" / "03.tar.arrow"
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    index.main([str(tars)])
    assert described(tars) == whole


def test_a_sidecar_is_made_by_parts_too(tars: Path, tmp_path: Path) -> None:
    index.main([str(tars), "--part", "1/1", "--out", str(tmp_path / "sidecar")])
    index.main([str(tars), "--out", str(tmp_path / "sidecar")])
    assert not (tmp_path / "sidecar" / ".indexing").exists()
    assert (tmp_path / "sidecar" / "set.json").exists()


def test_a_record_that_came_with_the_tars_is_held_to_its_form(tars: Path, whole: dict[str, str]) -> None:
    index.main([str(tars), "--part", "1/3"])
    for number, change in enumerate((lambda facts: facts["shard"].pop("bytes"), dict.clear)):
        path = tars / ".indexing" / f"{3 * number:02d}.tar.arrow"
        table = pa.ipc.open_file(path.read_bytes()[:-32]).read_all()
        facts = json.loads(table.schema.metadata[b"facts"])
        change(facts)
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, table.schema.with_metadata({"facts": json.dumps(facts)})) as writer:
            writer.write_table(table)
        record = content.getvalue().to_pybytes()
        path.write_bytes(record + hashlib.sha256(record).digest())
    index.main([str(tars)])
    assert described(tars) == whole
