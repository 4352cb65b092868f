"""Sets at URLs: a shard is fetched once a machine, whole or not at all, by workers and processes alike."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from nml.errors import UserError
from shards.dataset import ShardDataset
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet
from tests.shards.loaders import batches

pytestmark = pytest.mark.timeout(120)


class Bucket(AsyncFileSystem):
    """A local folder behind what network file systems of fsspec are made of; it logs what was fetched."""

    protocol = "bucket"
    log: Path | None = None
    fails = False

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        if self.fails:
            raise TimeoutError
        assert self.log is not None
        with self.log.open("a") as log:
            log.write(Path(path).name + "\n")
        return Path(self._strip_protocol(path)).read_bytes()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BytesIO:
        return io.BytesIO(self.cat_file(path))


@pytest.fixture
def bucket(digits_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "log", tmp_path / "fetched.log")
    return f"bucket://{digits_set.path}"


def fetched(tmp_path: Path) -> list[str]:
    return [name for name in (tmp_path / "fetched.log").read_text().split() if name.endswith(".tar")]


def pixels_of(image: Image.Image) -> bytes:
    return image.tobytes()


def read(location: str | Path, cache: Path, workers: int) -> dict[int, tuple[bytes, int]]:
    shard_set = ShardSet.open(location, cache=cache)
    sampler = ElasticBatchSampler(shard_set, global_batch=64, streams=8)
    dataset = ShardDataset(shard_set, "n20", pixels_of)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return {sample.index: (sample.image, sample.target) for batch in batches(loader) for sample in batch}


def test_workers_read_it_as_a_local_set_and_fetch_each_shard_once(
    bucket: str, digits_set: ShardSet, tmp_path: Path
) -> None:
    assert read(bucket, tmp_path / "cache", 2) == read(digits_set.path, tmp_path, 0)
    assert sorted(fetched(tmp_path)) == sorted(shard.name for shard in digits_set.info.shards)


def test_two_processes_at_once_share_one_cache(bucket: str, digits_set: ShardSet, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=read, args=(bucket, tmp_path / "cache", 0)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(fetched(tmp_path)) == sorted(shard.name for shard in digits_set.info.shards)


def test_a_cached_shard_cut_short_is_fetched_again(bucket: str, digits_set: ShardSet, tmp_path: Path) -> None:
    expected = read(bucket, tmp_path / "cache", 0)
    (cached,) = (tmp_path / "cache").rglob("shard-000003.tar")
    with cached.open("r+b") as file:
        file.truncate(1000)
    assert read(bucket, tmp_path / "cache", 0) == expected
    assert fetched(tmp_path).count("shard-000003.tar") == 2


def test_a_failing_network_is_one_line_also_from_a_worker(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = ShardSet.open(bucket, cache=tmp_path / "cache")
    dataset = ShardDataset(shard_set, "n20", pixels_of)
    monkeypatch.setattr(Bucket, "fails", True)
    sampler = ElasticBatchSampler(shard_set, global_batch=64, streams=8)
    with pytest.raises(
        UserError, match=r"^bucket://.*tar: cannot be fetched to .*: \w*TimeoutError: ; check"
    ):
        list(batches(DataLoader(dataset, batch_sampler=sampler, num_workers=2)))
    with pytest.raises(UserError, match=r"set\.json: cannot be read: \w*TimeoutError"):
        ShardSet.open(bucket, cache=tmp_path / "cache")


def test_the_cache_s_folder_is_named_by_a_variable(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NML_SHARD_CACHE", str(tmp_path / "scratch"))
    _ = ShardDataset(ShardSet.open(bucket))[0]
    assert [path.name for path in (tmp_path / "scratch").rglob("*.tar")] == ["shard-000000.tar"]
