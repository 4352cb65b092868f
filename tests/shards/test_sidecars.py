"""Sets whose tars stay where somebody else keeps them: nothing is written there, and all that reads reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from nml.errors import UserError
from nml.files import NoPlace
from nml.set_file import DIGEST, record_digest
from shards import index, info, relabel, sign, verify, write
from shards.dataset import ShardDataset
from shards.reader import DamagedSample, ShardReader
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet
from tests.object_store import bucket
from tests.served import PASSWORD, USER, served
from tests.shards.small_sources import IMAGES, LABELS, make_tar
from tests.signing_keys import make_keys

__all__ = ["bucket"]


class Watched(LocalFileSystem):
    """A folder that stands for a bucket, and keeps what was asked of it."""

    protocol = "watched"
    asked: list[tuple[str, str]] = []  # noqa: RUF012 - of all instances

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.asked.append((mode, path))
        return super()._open(path, mode=mode, **options)

    def touch(self, path: str, **_: Any) -> None:
        raise AssertionError(path)

    mkdir = makedirs = put_file = cp_file = mv = rm = rm_file = touch


fsspec.register_implementation("watched", Watched, clobber=True)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two foreign tars of 12 samples each, in a folder that nobody may write to."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for name in ("a", "b"):
        make_tar(folder / f"{name}.tar", "cls", list(map(str, LABELS)))
    folder.chmod(0o555)
    return folder


@pytest.fixture(params=["folder", "file", "http", "watched", "s3"])
def location(request: pytest.FixtureRequest, tars: Path) -> Iterator[str]:
    if request.param == "s3":
        url = f"{request.getfixturevalue('bucket')}/tars"
        remote = fsspec.filesystem("s3")
        for path in tars.iterdir():
            remote.put_file(str(path), f"{url}/{path.name}")
        before = remote.find(url, detail=True)
        yield url
        remote.invalidate_cache()
        assert {name: each["LastModified"] for name, each in remote.find(url, detail=True).items()} == {
            name: each["LastModified"] for name, each in before.items()
        }
        return
    with served(tars) as server:
        yield {
            "folder": str(tars),
            "file": f"file://{tars}",
            "http": f"http://{USER}:{PASSWORD}@{server.place}/{{a,b}}.tar",
            "watched": f"watched://{tars}",
        }[request.param]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NML_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NML_URL_SECRETS", "{}")
    Watched.asked.clear()


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *sorted(folder.rglob("*")))
    }


def side(location: str | Path, out: Path, *words: str) -> ShardSet:
    index.main([str(location), "--out", str(out), *words])
    return ShardSet.open(out)


def test_levels_are_added_verified_and_read_without_a_byte_written_beside_the_tars(
    location: str, tars: Path, tmp_path: Path
) -> None:
    before = state(tars)
    out = tmp_path / "sidecar"
    side(location, out)
    relabel.main([str(out), "--noise", "0.25"])
    relabel.main([str(out), "--noise", "0.25", "--model", "pair-flip", "--name", "flipped"])
    assert verify.main([str(out), "--decode"]) == 0
    shard_set = ShardSet.open(out)
    assert {level.flipped for level in shard_set.info.levels.values()} == {6}
    dataset = ShardDataset(shard_set, "flipped", lambda image: image.size)
    clean = [dataset.shard_set.index.supervision(sample, "label") for sample in range(24)]
    assert sum(dataset[sample].target != clean[sample] for sample in range(24)) == 6
    images = sorted(ShardReader(shard_set).image(sample)[1] for sample in range(24))
    assert images == sorted(2 * IMAGES)
    assert state(tars) == before
    assert {mode for mode, _ in Watched.asked} <= {"rb"}
    assert f"tars         at {shard_set.info.shards[0].url.removesuffix('/a.tar')}" in info.describe(
        shard_set
    )
    text = (out / "set.json").read_text()
    assert PASSWORD not in text
    shards = json.loads(text)["shards"]
    assert [shard["url"].rpartition("/")[2] for shard in shards] == ["a.tar", "b.tar"]
    assert [path.name for path in out.iterdir() if path.suffix == ".tar"] == []


def test_a_sidecar_is_the_set_that_an_index_in_place_makes(tars: Path, tmp_path: Path) -> None:
    shard_set = side(tars, tmp_path / "sidecar")
    tars.chmod(0o755)
    index.main([str(tars)])
    there = ShardSet.open(tars)
    assert shard_set.fingerprint == there.fingerprint
    assert shard_set.manifest_sha256 == there.manifest_sha256
    begun = ElasticBatchSampler(there, global_batch=8, streams=8).state_dict(epoch=1, step=1)
    ElasticBatchSampler(shard_set, global_batch=8, streams=8).load_state_dict(begun)


def test_a_sidecar_as_a_source_is_told_what_to_do_instead(tars: Path, tmp_path: Path) -> None:
    side(tars, tmp_path / "sidecar")
    with pytest.raises(UserError, match=r"is a sidecar.*shards\.relabel .*sidecar --noise"):
        write.main(["--source", f"wds:{tmp_path / 'sidecar'}", "--out", str(tmp_path / "set")])
    assert not (tmp_path / "set").exists()


def test_a_set_gets_a_sidecar_with_its_levels_and_a_further_one(copied: Path, tmp_path: Path) -> None:
    before = state(copied)
    shard_set = side(f"watched://{copied}", tmp_path / "sidecar")
    relabel.main([str(tmp_path / "sidecar"), "--noise", "0.15"])
    assert verify.main([str(tmp_path / "sidecar")]) == 0
    assert list(ShardSet.open(tmp_path / "sidecar").levels) == ["n00", "n10", "n15", "n20", "n30"]
    assert shard_set.fingerprint == ShardSet.open(copied).fingerprint
    assert state(copied) == before


def test_a_set_that_is_damaged_gets_no_sidecar(copied: Path, tmp_path: Path) -> None:
    (copied / "stats.json").write_bytes(b"{}\n")
    with pytest.raises(UserError, match=r"stats\.json is not what the manifest counts"):
        side(copied, tmp_path / "sidecar")
    assert not (tmp_path / "sidecar").exists()


@pytest.mark.parametrize("change", ["image", "size", "gone"])
def test_a_tar_that_changes_is_never_another_sample(change: str, tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "sidecar"
    shard_set = side(f"watched://{tars}", out)
    tars.chmod(0o755)
    place = shard_set.index.place(3)
    tar = tars / "a.tar"
    content = bytearray(tar.read_bytes())
    content[place.offset + place.size // 2] ^= 1
    tar.unlink()
    if change != "gone":
        tar.write_bytes(content if change == "image" else content + bytes(512))
    with pytest.raises((DamagedSample, UserError), match=r"SHA-256|set\.json says|cannot be"):
        ShardReader(ShardSet.open(out)).image(3)
    assert verify.main([str(out)]) == 1


def test_a_signature_covers_the_urls(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "sidecar"
    side(tars, out)
    make_keys(tmp_path)
    sign.main([str(out), "--key", str(tmp_path / "mine.pem")])
    assert ShardSet.open(out, signed_by=tmp_path / "mine.pub").num_samples == 24
    rewrite(out, lambda record: record["shards"][0].update(url=f"file://{tmp_path}/a.tar"))
    with pytest.raises(UserError, match="is not what was signed"):
        ShardSet.open(out, signed_by=tmp_path / "mine.pub")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a set.json as somebody would who knows what it must hash to."""
    record = json.loads((folder / "set.json").read_text())
    del record[DIGEST]
    change(record)
    stored = {name: value for name, value in record.items() if name != "format"}
    (folder / "set.json").write_text(json.dumps({**record, DIGEST: record_digest(stored)}))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://host/b.tar",
        "http://me:secret@host/a.tar",
        "simplecache::http://host/a.tar",
        "http://host/a.tar?x=/a.tar",
        "http://host/ /a.tar",
        "a.tar",
        "",
    ],
)
def test_a_url_that_is_none_of_the_tar_is_refused(url: str, tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "sidecar"
    side(tars, out)
    rewrite(out, lambda record: record["shards"][0].update(url=url))
    with pytest.raises(UserError, match=r"set\.json: damaged: "):
        ShardSet.open(out)


def test_a_sidecar_of_a_server_names_no_files_of_this_machine(tars: Path, tmp_path: Path) -> None:
    side(tars, tmp_path / "sidecar")
    with pytest.raises(UserError, match="names files of this machine"):
        ShardSet.open(f"watched://{tmp_path / 'sidecar'}")
    side(f"watched://{tars}", tmp_path / "other")
    assert ShardSet.open(f"watched://{tmp_path / 'other'}").num_samples == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watched://{tars}"], "this command works on a local folder"),
        (["watched://{tars}/none", "--out", "{out}"], "cannot be listed|lists no"),
        (["watched://{tmp}", "--out", "{out}"], "lists no .tar"),
        (["watched://{tars}/c.tar", "--out", "{out}"], "cannot be read"),
        (["{tars}", "--out", "{tmp}/file"], "cannot be written to"),
    ],
)
def test_what_cannot_be_indexed_is_one_line(
    words: list[str], message: str, tars: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    places = {"tars": tars, "tmp": tmp_path, "out": tmp_path / "out"}
    command = [word.format(**places) for word in words]
    with pytest.raises(UserError, match=message):
        index.main(command)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_told_of_sidecars(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may be run by one who may write everywhere.
    monkeypatch.setattr("os.access", lambda path, _: path != tars)
    with pytest.raises(UserError, match="cannot be written to; keep the index elsewhere: --out FOLDER"):
        index.main([str(tars)])
    with pytest.raises(UserError, match="cannot be written to; name another --out"):
        side(tars, tars / "new")
    with pytest.raises(NoPlace):
        side(tars, Path("/proc/none/sidecar"))
    assert side(tars, tmp_path / "sidecar").num_samples == 24


def test_two_tars_of_one_name_are_refused(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    make_tar(tmp_path / "more" / "a.tar", "cls", list(map(str, LABELS)))
    with pytest.raises(UserError, match=r"another tar is called a\.tar, too"):
        side(f"{tmp_path}/{{bucket,more}}/a.tar", tmp_path / "sidecar")


def test_a_held_out_split_is_told_by_its_url(tars: Path, tmp_path: Path) -> None:
    tars.rename(tmp_path / "val")
    side(f"watched://{tmp_path}/val", tmp_path / "sidecar")
    with pytest.raises(UserError, match="is a validation or test split"):
        relabel.main([str(tmp_path / "sidecar"), "--noise", "0.25"])


def test_the_features_of_instance_dependent_noise_may_be_of_a_sidecar(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "sidecar"
    side(f"watched://{tars}", out)
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(24, 3)))
    words = ["--model", "instance-dependent", "--model-file", str(tmp_path / "features.npy")]
    relabel.main([str(out), "--noise", "0.25", *words])
    assert ShardSet.open(out).level("n25").flipped == 6
