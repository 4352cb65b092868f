"""Sources at URLs, of a real S3 and a real web server: the set of the same files here, whatever breaks."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml import remote_files, urls
from nml.errors import UserError
from nml.files import sha256_file
from shards import finish, pack, plan, write
from shards.shardset import ShardSet
from tests.object_store import WebServer, bucket, web_server
from tests.served import PASSWORD, USER
from tests.shards.small_sources import IMAGES, LABELS, make_tar

__all__ = ["bucket"]
OPTIONS = ["--noise", "0", "0.25", "--max-shard-count", "5", "--workers", "1"]
SOURCES = ["wds:{}/a.tar", "wds:{}/b.tar.gz", "parquet:{}/bytes.parquet", "csv:{}/paths.csv"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_tar(folder / "a.tar", "cls", list(map(str, LABELS)))
    (folder / "b.tar.gz").write_bytes(gzip.compress((folder / "a.tar").read_bytes()))
    images = [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(IMAGES)]
    pq.write_table(pa.table({"image": images, "label": LABELS}), folder / "bytes.parquet", row_group_size=5)
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    lines = [f"{number}.jpg,{label}\n" for number, label in enumerate(LABELS)]
    (folder / "paths.csv").write_text("path,label\n" + "".join(lines))
    return folder


@pytest.fixture
def server(data: Path) -> Iterator[WebServer]:
    with web_server(data) as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wait for no server, and keep what is cached to a test."""
    monkeypatch.setattr(remote_files, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv(urls.VARIABLE, raising=False)


def written(source: str, out: Path) -> tuple[str, str, str]:
    """Write a set; return what identifies its samples, their noise and their places."""
    write.main(["--source", source, *OPTIONS, "--out", str(out)])
    found = ShardSet.open(out).info
    return found.fingerprint, found.manifest_sha256, found.index_sha256


@pytest.mark.parametrize("source", SOURCES)
def test_files_at_a_url_make_the_set_of_the_same_files_here(
    data: Path, server: WebServer, bucket: str, tmp_path: Path, source: str
) -> None:
    here = written(source.format(data), tmp_path / "here")
    assert written(source.format(f"http://{server.place}"), tmp_path / "http") == here
    remote = fsspec.filesystem("s3")
    for path in data.iterdir():
        remote.put_file(str(path), f"bucket/data/{path.name}")
    assert written(source.format(f"{bucket}/data"), tmp_path / "s3") == here


def test_a_folder_and_a_pattern_at_a_url_name_the_files_in_it(
    data: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        fsspec.filesystem("s3").put_file(str(data / "a.tar"), f"bucket/parts/{name}")
    both = [written(f"wds:{bucket}/parts/{name}", tmp_path / str(len(name))) for name in ("train-*.tar", "")]
    assert both[0] == both[1]
    assert "read 2 of 3 files: the split train" in capsys.readouterr().err
    assert ShardSet.open(tmp_path / "0").num_samples == 2 * len(LABELS)


def test_a_set_from_a_table_in_a_bucket_goes_to_a_bucket_by_parts_and_from_several_machines(
    data: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = fsspec.filesystem("s3")
    remote.put_file(str(data / "bytes.parquet"), "bucket/table/bytes.parquet")
    asked = ["--source", f"parquet:{bucket}/table", *OPTIONS[:-2]]
    write.main([*asked, "--workers", "1", "--out", str(tmp_path / "here")])
    out = f"{bucket}/made"
    plan.main([*asked, "--out", out])
    for part in ("1/2", "2/2"):
        with pytest.raises(UserError, match=r"shards are not packed yet"):
            finish.main([out])
        # Another machine: it has no file of the first.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / part))
        pack.main([out, "--part", part, "--workers", "1"])
    # The shards and the plan went there; a table's images are in no file but the shards.
    assert sum(path.stat().st_size for path in tmp_path.glob("?/**/*") if path.is_file()) == 0
    finish.main([out])
    names = {path.rpartition("/")[2]: path for path in remote.find("bucket/made")}
    assert {name: remote.cat_file(path) for name, path in names.items()} == {
        path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()
    }
    with pytest.raises(UserError, match=r"s3://bucket/made: is a shard set, which is no source at a URL"):
        write.main(["--source", f"wds:{out}", "--out", str(tmp_path / "again")])


def test_images_of_a_table_are_spooled_only_if_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--source", f"parquet:{data}/bytes.parquet", "--max-shard-count", "1"]
    made = []
    for more, files in (([], set()), (["--spool"], {"spool.bin"})):
        out = tmp_path / f"set{len(more)}"
        plan.main([*asked, *more, "--out", str(out)])
        found = {path.name for path in (out / ".writing").iterdir()}
        assert found == {"plan.json", "rows.bin", "rows.npy", *files}
        # Twelve shards of one image each, from three row groups.
        assert ("will be read about 4 times" in capsys.readouterr().err) == (not more)
        write.main([*asked, "--workers", "1", "--out", str(out)])
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1]


@pytest.mark.parametrize("source", SOURCES)
def test_answers_that_break_off_are_asked_for_again(
    data: Path, server: WebServer, tmp_path: Path, source: str
) -> None:
    here = written(source.format(data), tmp_path / "here")
    server.cuts = 3
    assert written(source.format(f"http://{server.place}"), tmp_path / "there") == here
    assert server.cuts == 0


def test_a_server_that_always_breaks_off_is_told_in_one_line_and_writes_on_when_mended(
    data: Path, server: WebServer, tmp_path: Path
) -> None:
    source = f"parquet:http://{server.place}/bytes.parquet"
    out = tmp_path / "set"
    plan.main(["--source", source, *OPTIONS[:-2], "--out", str(out)])
    server.cuts = 10**6
    with pytest.raises(UserError, match=rf"^{source.partition(':')[2]}: cannot be read: "):
        pack.main([str(out), "--workers", "1"])
    server.cuts = 0
    pack.main([str(out), "--workers", "1"])
    finish.main([str(out)])
    assert ShardSet.open(out).info.fingerprint == written(source, tmp_path / "whole")[0]
    server.cuts = 10**6
    with pytest.raises(UserError, match=r"cannot be read"):
        written(source, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "locked", "ranges", "message"),
    [
        ("c.tar", False, True, r"http://127[^ ]*/c\.tar: cannot be read: FileNotFoundError"),
        ("a.tar", True, True, r"/a\.tar: cannot be read: .*403.*user and password, or with its signature"),
        ("a.tar", False, False, r"/a\.tar: its server sends whole files where a part of one is asked for"),
        ("", False, True, None),
        ("*.zip", False, True, r"there is no http://.*\*\.zip; check the URL; if its server lists nothing"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    server: WebServer, tmp_path: Path, name: str, locked: bool, ranges: bool, message: str | None
) -> None:
    server.locked, server.ranges = locked, ranges
    source = f"wds:http://{server.place}/{name}"
    if message is None:
        # It lists its folders.
        assert len(written(source, tmp_path / "set")[0]) == 64
        return
    with pytest.raises(UserError, match=message):
        written(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_password_of_a_source_is_used_and_kept_nowhere(
    server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.locked = True
    source = f"wds:http://{USER}:{PASSWORD}@{server.place}/a.tar"
    with pytest.raises(UserError) as refused:
        written(source.replace("a.tar", "c.tar"), tmp_path / "set")
    plan.main(["--source", source, "--out", str(tmp_path / "planned")])
    written(source, tmp_path / "set")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"set.json", "plan.json", "rows.bin"} <= {path.name for path in files}
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files)
    assert PASSWORD not in "".join([*capsys.readouterr(), str(refused.value)])
    assert ShardSet.open(tmp_path / "set").info.source == f"wds:http://{server.place}/a.tar"
    assert len(sha256_file(tmp_path / "set" / "set.json")) == 64
