"""Writing to a URL: the same bytes as in a folder, nothing taken for whole before it is, and mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nml.errors import UserError
from nml.files import sha256_file
from shards import write
from shards.destination import open_destination
from shards.shardset import ShardSet

ARGUMENTS = ["--source", "digits", "--noise", "0.2", "--max-shard-count", "300"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep staging folders and cached shards of a test to itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    remote = fsspec.filesystem("memory")
    yield remote
    remote.store.clear()
    remote.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the set that ARGUMENTS describe, written to a folder."""
    out = tmp_path_factory.mktemp("local") / "set"
    write.main([*ARGUMENTS, "--out", f"file://{out}"])
    return {path.name: path.read_bytes() for path in out.iterdir()}


def uploaded(memory: Any) -> dict[str, bytes]:
    return {path.removeprefix("/bucket/set/"): memory.cat_file(path) for path in memory.find("/bucket")}


def test_a_url_gets_the_files_of_a_folder_and_nothing_stays_here(
    memory: Any, local: dict[str, bytes], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
        assert uploaded(memory) == local
    assert "nothing to do" in capsys.readouterr().out
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert ShardSet.open("memory://bucket/set").level(0.2).flipped == 252


def test_an_upload_that_fails_leaves_no_set_and_is_continued(
    memory: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    put = type(memory).put_file

    def failing(self: Any, here: str, there: str, **options: Any) -> None:
        sent.append(Path(there).name)
        if there.endswith("shard-000003.tar"):
            raise PermissionError("token has expired")
        put(self, here, there, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", failing)
        with pytest.raises(
            UserError, match=r"shard-000003\.tar: cannot be uploaded: .*token has expired.*kept"
        ):
            write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
    with pytest.raises(UserError, match="interrupted"):
        ShardSet.open("memory://bucket/set")
    with pytest.raises(UserError, match=r"interrupted write with other options .*seed: 0 there, 1 asked"):
        write.main([*ARGUMENTS, "--seed", "1", "--out", "memory://bucket/set"])
    sent.clear()
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, a, b, **c: (sent.append(Path(b).name), put(self, a, b, **c))
    )
    write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
    assert [name for name in sent if name.endswith(".tar")] == ["shard-000003.tar", "shard-000004.tar"]
    assert uploaded(memory) == local


def test_a_shard_that_arrives_short_is_told(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = type(memory).put_file

    def cutting(self: Any, here: str, there: str, **options: Any) -> None:
        put(self, here, there, **options)
        if there.endswith("shard-000001.tar"):
            self.store[there].truncate(1000)

    monkeypatch.setattr(type(memory), "put_file", cutting)
    with pytest.raises(UserError, match=r"bytes were sent and 1,000 arrived"):
        write.main([*ARGUMENTS, "--out", "memory://bucket/set"])


def test_a_shard_lost_between_two_runs_is_packed_again(
    memory: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import writing

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
    memory.rm("/bucket/set/shard-000002.tar")
    write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
    assert uploaded(memory) == local


def test_another_machine_starts_anew_and_ends_with_the_same_bytes(
    memory: Any, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import writing

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write.main([*ARGUMENTS, "--out", "memory://bucket/set", "--staging", str(tmp_path / "here")])
    write.main([*ARGUMENTS, "--out", "memory://bucket/set", "--staging", str(tmp_path / "there")])
    assert uploaded(memory) == local


def test_other_content_at_the_url_is_left_alone(memory: Any) -> None:
    memory.pipe_file("/bucket/set/thesis.tex", b"precious")
    with pytest.raises(UserError, match="is not empty and holds no shard set"):
        write.main([*ARGUMENTS, "--out", "memory://bucket/set"])
    assert uploaded(memory) == {"thesis.tex": b"precious"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "nowhere://bucket/set"], r"--out nowhere://bucket/set: Protocol not known"),
        (
            ["--out", "ftp://me:secret@127.0.0.1:1/set"],
            r"ftp://me@127\.0\.0\.1:1/set: cannot be reached",
        ),
        (["--out", "memory://bucket/set", "--source", "imagefolder:/nonexistent"], "there is no folder"),
        (["--out", "memory://bucket/set", "--split", "test"], "must not touch"),
        (["--out", "set", "--staging", "/tmp/x"], "is a local folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    memory: Any, cache: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write.main([*ARGUMENTS, *arguments])
    assert "secret" not in str(caught.value)
    assert uploaded(memory) == {}
    assert not cache.exists()


def test_a_folder_is_shown_as_it_was_named() -> None:
    assert open_destination("sets/x").shown == "sets/x"


ELSEWHERE = """
from fsspec.implementations.local import LocalFileSystem

class Elsewhere(LocalFileSystem):
    protocol = ("elsewhere",)

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("elsewhere://"))
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment in which ``elsewhere:///PATH`` is a file system that every process can open."""
    site = tmp_path / "site"
    metadata = site / "elsewhere-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "elsewhere_fs.py").write_text(ELSEWHERE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fsspec.specs]\nelsewhere = elsewhere_fs:Elsewhere\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def test_a_killed_upload_is_continued_by_the_same_command(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    command = [sys.executable, "-m", "shards.write", "--source", "digits", "--noise", "0.05", "0.2"]
    command += ["--max-shard-count", "100", "--workers", "2", "--out"]
    whole, remote = tmp_path / "whole", tmp_path / "remote" / "set"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    url = f"elsewhere://{remote}"
    information = [sys.executable, "-m", "shards.info", url]
    for _ in range(2):
        process = subprocess.Popen([*command, url], stdout=subprocess.DEVNULL, env=elsewhere)
        enough = len(list(remote.glob("shard-*"))) + 3
        while process.poll() is None and len(list(remote.glob("shard-*"))) < enough:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (remote / "set.json").exists()
    reader = subprocess.run(information, capture_output=True, text=True, env=elsewhere)
    assert (reader.returncode, len(reader.stderr.splitlines())) == (2, 1)
    assert "interrupted" in reader.stderr
    done = subprocess.run([*command, url], check=True, capture_output=True, text=True, env=elsewhere)
    # On a busy machine the last shard may be there before the kill is: then there is nothing left to write.
    assert "kept from an interrupted write" in done.stdout or "written in" not in done.stdout
    hashes = [
        {p.name: sha256_file(p) for p in folder.rglob("*") if p.is_file()} for folder in (whole, remote)
    ]
    assert hashes[0] == hashes[1]
