"""However many files a set is made of, few are open at once; and one process at a time changes it."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nml.files import sha256_file
from shards.dataset import ShardDataset
from shards.layout import ShardLimits
from shards.packing import ImageReader
from shards.reader import OPEN_SHARDS, ShardReader
from shards.relabel import relabel
from shards.shardset import ShardSet
from shards.verify import verify
from tests.shards.small_sources import IMAGES

FILES = OPEN_SHARDS + 44


@pytest.fixture
def descriptors() -> Iterator[Callable[[int], None]]:
    """Let this process open so many files more, and no more than that."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more: int) -> None:
        taken = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        # The limit is on numbers; the lowest free one is given out, and a parent may have left high ones.
        limit = next(n for n in itertools.count(more) if n - sum(number < n for number in taken) == more)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(FILES):
        path = folder / f"class{number % 3}" / f"{number:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(IMAGES[number % len(IMAGES)])
    return folder


@pytest.mark.parametrize("samples", [FILES, 20], ids=["one shard", "many shards"])
def test_more_image_files_than_a_process_may_open_are_packed(
    samples: int,
    many_files: Path,
    tmp_path: Path,
    descriptors: Callable,
    written: Callable,
    requested: Callable,
) -> None:
    request = requested(f"imagefolder:{many_files}", "0", "0.2", limits=ShardLimits(10**9, samples))
    descriptors(ImageReader.LIMIT + 40)
    shard_set = written(tmp_path / "set", request)
    assert shard_set.num_samples == FILES
    assert not [finding for finding in verify(tmp_path / "set") if finding.problem]


def test_more_shards_than_a_process_may_open_are_read_and_all_are_closed(
    many_files: Path, tmp_path: Path, descriptors: Callable, written: Callable, requested: Callable
) -> None:
    request = requested(f"imagefolder:{many_files}", "0", "0.2", limits=ShardLimits(10**9, 1))
    shard_set: ShardSet = written(tmp_path / "set", request)
    assert len(shard_set.info.shards) == FILES
    descriptors(OPEN_SHARDS + 30)
    for _ in range(3):
        # A reader that is gone has closed what it opened.
        dataset = ShardDataset(shard_set, "n20")
        assert sum(1 for sample in range(FILES) if dataset[sample].image.size == (16, 16)) == FILES
    del dataset
    reader = ShardReader(shard_set)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for sample in range(FILES):
        reader.image(sample)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= OPEN_SHARDS
    del reader
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_threads_share_a_reader_of_more_shards_than_it_has_open(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = ShardSet.open(copied)
    assert len(shard_set.info.shards) > 2
    monkeypatch.setattr("shards.reader.OPEN_SHARDS", 2)
    reader = ShardReader(shard_set)
    expected = [reader.image(sample) for sample in range(shard_set.num_samples)]
    # So often in turn that one is stopped between finding a file and reading it.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            samples = random.Random(0).choices(range(shard_set.num_samples), k=8000)
            assert list(threads.map(reader.image, samples)) == [expected[sample] for sample in samples]
    finally:
        sys.setswitchinterval(interval)


def test_a_set_is_locked_whenever_a_file_of_it_is_replaced_by_a_relabel(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, free = [], []
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        descriptor = os.open(copied, os.O_RDONLY)
        try:
            # Another descriptor is another holder, also in one process.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(Path(target).name)
        except BlockingIOError:
            replaced.append(Path(target).name)
        finally:
            os.close(descriptor)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    relabel(copied, [Fraction("0.15")], None, None, None)
    assert free == [], "another process may change the set meanwhile"
    files = ["index.arrow", "manifest.parquet", "stats.json", "set.json"]
    assert replaced == [f".{name}.next" for name in files] + files
    descriptor = os.open(copied, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert sha256_file(copied / "manifest.parquet") == ShardSet.open(copied).manifest_sha256


def test_a_set_is_read_for_its_new_level_only_once_nobody_else_changes_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = ShardSet.open

    def checked(folder: Any, *args: Any, **kwargs: Any) -> ShardSet:
        descriptor = os.open(copied, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        opened.append(folder)
        return original(folder, *args, **kwargs)

    monkeypatch.setattr(ShardSet, "open", checked)
    relabel(copied, [Fraction("0.15")], None, None, None)
    assert opened == [copied]
