"""A file under its final name is whole, whatever happened while it was written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nml.files import NoPlace, atomic_writer, make_folder, sha256_file, write_bytes, write_json


def test_an_error_while_writing_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    write_bytes(target, b"old")

    def break_off() -> None:
        with atomic_writer(target) as file:
            file.write(b"new, but hal")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        break_off()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from nml.files import atomic_writer\n"
        "with atomic_writer(pathlib.Path('late.bin')) as file:\n"
        "    file.write(b'x' * 100_000)\n"
        "    file.flush()\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "late.bin").exists()


def test_equal_values_give_equal_json_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "é", "b": 1}


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "data", b"digits")
    assert sha256_file(tmp_path / "data") == hashlib.sha256(b"digits").hexdigest()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_a_file_stands_in_the_way_of_is_told_as_such(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoPlace, match=f"Not a directory: .*{name}"):
        make_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/proc/no", "No such file"),
        ("/proc/no/file", "No such file"),
        ("/dev/null/file", "Not a directory"),
        ("folder", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_where_no_file_can_be_is_told_as_such(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(NoPlace, match=reason):
        write_bytes(tmp_path / name, b"digits")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
