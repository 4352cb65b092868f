"""A set from elsewhere is read or refused; it never serves for another, and never ends the reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from nml.errors import UserError
from shards import verify
from shards.reader import ShardReader
from shards.shardset import ShardSet
from tests.hostile.sets import filled, outside, with_index, with_record


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shards.write import main

    folder = tmp_path_factory.mktemp("sets") / "digits"
    main(["--source", "digits", "--split", "validation", "--noise", "0.2", "--force", "--out", str(folder)])
    return folder


@pytest.fixture
def copied(digits: Path, tmp_path: Path) -> Path:
    shutil.copytree(digits, tmp_path / "set")
    return tmp_path / "set"


INDEXES: dict[str, Callable[[str, pa.Array], pa.Array]] = {
    "offsets": lambda name, column: outside(column) if name == "key" else column,
    "sizes": lambda name, column: filled(column, 2**62) if name == "image_size" else column,
    "places": lambda name, column: filled(column, -1) if name == "image_offset" else column,
    "shards": lambda name, column: filled(column, 99) if name == "shard" else column,
    "labels": lambda name, column: filled(column, 10) if name == "label_n20" else column,
    "nothing": lambda name, column: filled(column, None) if name == "sha256" else column,
    "types": lambda name, column: column.cast(pa.int64()) if name == "label_n20" else column,
    "text": lambda name, column: (
        pa.array([b"\xff"] * len(column)).view(pa.string()) if name == "key" else column
    ),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_points_outside_is_refused_by_reader_and_verify(copied: Path, kind: str) -> None:
    with_index(copied, INDEXES[kind])

    def read() -> None:
        index = ShardSet.open(copied).index
        index.place(1)
        index.supervision(1, "label_n20")

    with pytest.raises(UserError, match=r"index\.arrow: damaged: [a-z_0-9]+ (of rows|is)"):
        read()
    assert "index content" in [found.name for found in verify.verify(copied, images=False) if found.problem]


def test_an_index_of_other_labels_than_the_manifest_is_told_by_verify(copied: Path) -> None:
    with_index(copied, lambda name, column: filled(column, 3) if name == "label_n20" else column)
    assert [found.name for found in verify.verify(copied) if found.problem] == ["index content"]


@pytest.mark.parametrize("name", ["../../thesis.tar", "/tmp/thesis.tar", "..", "thesis.tex", "a\x1b[2J.tar"])
def test_no_name_of_a_shard_leads_out_of_the_set(copied: Path, name: str) -> None:
    with_record(copied, lambda record: record["shards"][0].update(name=name))
    with pytest.raises(
        UserError, match=r"set\.json: damaged: .* is no name of a file \*\.tar of this folder"
    ):
        ShardSet.open(copied)


@pytest.mark.parametrize("field", ["fingerprint", "manifest_sha256", "index_sha256"])
def test_no_hash_of_a_set_is_a_path(copied: Path, field: str) -> None:
    with_record(copied, lambda record: record.update({field: "../../../../home/x"}))
    with pytest.raises(UserError, match=r"damaged: '\.\./\.\./\.\./\.\./home/x' is no SHA-256"):
        ShardSet.open(copied)


def test_a_set_that_claims_the_fingerprint_of_another_has_a_cache_of_its_own(
    digits: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for file in digits.iterdir():
        memory.pipe_file(f"/good/{file.name}", file.read_bytes())
        memory.pipe_file(f"/evil/{file.name}", file.read_bytes())
    shard = next(digits.glob("*.tar"))
    memory.pipe_file(f"/evil/{shard.name}", bytes(shard.stat().st_size))
    memory.pipe_file("/evil/stats.json", b'{"lies": true}')
    evil = ShardSet.open("memory://evil", cache=tmp_path)
    evil.storage.local(shard.name)
    evil.storage.local("stats.json")
    good = ShardSet.open("memory://good", cache=tmp_path)
    assert good.storage.local("stats.json").read_bytes() == (digits / "stats.json").read_bytes()
    assert ShardReader(good).image(0)[1] == ShardReader(ShardSet.open(digits)).image(0)[1]


def test_a_server_that_sends_more_than_a_shard_or_another_index_fills_no_cache(
    digits: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for file in digits.iterdir():
        memory.pipe_file(f"/long/{file.name}", file.read_bytes())
    shard = next(digits.glob("*.tar"))
    memory.pipe_file(f"/long/{shard.name}", bytes(40 << 20))
    memory.pipe_file("/long/index.arrow", b"x")
    found = ShardSet.open("memory://long", cache=tmp_path)
    with pytest.raises(UserError, match=r"has more than .* bytes, set\.json says"):
        found.storage.local(shard.name)
    with pytest.raises(UserError, match=r"index\.arrow: is not what set\.json says by its SHA-256"):
        _ = found.index
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_an_index_that_is_packed_is_not_unpacked(copied: Path, codec: str) -> None:
    with_index(copied, lambda _, column: column, pa.ipc.IpcWriteOptions(compression=codec))
    with pytest.raises(UserError, match=r"index\.arrow: a batch of it is compressed"):
        ShardSet.open(copied).index.place(0)
