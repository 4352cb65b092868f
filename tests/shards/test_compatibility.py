"""Other people's readers see the same samples: webdataset 1 and 0.2.86, open_clip_train, timm, Energon.

What the environment does not hold is fetched into a folder of its own, whose packages go before the
installed ones in the process that reads; without a package index, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml import digits
from shards.layout import ShardLimits
from shards.shardset import ShardSet

READERS = Path(__file__).with_name("foreign_readers.py")


def fetched(folder: Path, *requirements: str, alone: bool) -> Path:
    """Install packages into a folder: alone, or with what they need."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", str(folder)]
    command += ["--no-deps"] * alone
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=300)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines()[::-1] if line.strip()), "no reason given")
        pytest.skip(f"{', '.join(requirements)}: cannot be fetched: {reason}")
    return folder


@pytest.fixture(scope="session")
def old_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """webdataset 0.2.86, which open_clip_train needs; all it imports is installed."""
    return fetched(tmp_path_factory.mktemp("webdataset"), "webdataset==0.2.86", alone=True)


@pytest.fixture(scope="session")
def energon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Megatron-Energon and what it needs, but for torch, which is installed."""
    folder = tmp_path_factory.mktemp("energon")
    fetched(folder, "multi-storage-client", "rapidyaml", "filetype", "mfusepy", alone=False)
    return fetched(folder, "megatron-energon==7.4.1", alone=True)


def read(kind: str, shard_set: ShardSet, *more: str, before: Path | None = None) -> dict[str, Any]:
    """Read a set in a fresh process; ``before`` is a folder whose packages go before the installed ones."""
    command = [sys.executable, str(READERS), kind, shard_set.path, str(shard_set.num_samples), *more]
    environment = {**os.environ, "PYTHONPATH": str(before or "")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def column(shard_set: ShardSet, name: str) -> list[Any]:
    values: list[Any] = shard_set.index.column(name).to_pylist()
    return values


def check_webdataset(shard_set: ShardSet, before: Path | None = None) -> str:
    found = read("webdataset", shard_set, before=before)
    names = ("key", "label", "label_n20")
    expected = {
        key: [clean, noisy, [32, 32, 3]]
        for key, clean, noisy in zip(*(column(shard_set, name) for name in names), strict=True)
    }
    assert found["samples"] == expected
    return str(found["version"])


def test_the_installed_webdataset_reads_images_and_both_labels(digits_set: ShardSet) -> None:
    assert check_webdataset(digits_set).split(".")[0] == "1"


def test_the_webdataset_before_it_reads_images_and_both_labels(
    digits_set: ShardSet, old_webdataset: Path
) -> None:
    assert check_webdataset(digits_set, old_webdataset) == "0.2.86"


def test_timm_reads_a_level_by_its_target_key(digits_set: ShardSet) -> None:
    found = read("timm", digits_set)["labels"]
    assert found["None"] == sorted(column(digits_set, "label"))
    assert found["label_n20"] == sorted(column(digits_set, "label_n20"))
    assert found["None"] != found["label_n20"]


@pytest.fixture
def caption_set(tmp_path: Path, written: Callable, requested: Callable, digits_set: ShardSet) -> ShardSet:
    from shards.dataset import ShardDataset
    from shards.sources.digits import encode_png

    data = ShardDataset(digits_set)
    images = [encode_png(data[number].image) for number in range(64)]
    table = {"image": images, "caption": [f"the digit {number}" for number in range(64)]}
    pq.write_table(pa.table(table), tmp_path / "captions.parquet")
    request = requested(f"parquet:{tmp_path / 'captions.parquet'}", "0.25", limits=ShardLimits(10**9, 16))
    return written(tmp_path / "captions", request)


def test_open_clip_reads_the_first_level_s_captions(caption_set: ShardSet, old_webdataset: Path) -> None:
    found = read("open_clip", caption_set, before=old_webdataset)
    assert sorted(found["texts"]) == sorted(column(caption_set, "caption_n25"))
    assert found["version"] == "0.2.86"


def test_open_clip_reads_any_level_as_the_documentation_shows(
    caption_set: ShardSet, old_webdataset: Path
) -> None:
    found = read("open_clip", caption_set, "caption", before=old_webdataset)
    assert sorted(found["texts"]) == sorted(column(caption_set, "caption"))
    paired = dict(zip(column(caption_set, "caption"), column(caption_set, "caption_n25"), strict=True))
    assert any(clean != noisy for clean, noisy in paired.items())


def test_energon_prepares_the_set(digits_set: ShardSet, energon: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits_set.path, tmp_path / "set")
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"]
    fields = ["--field-map", json.dumps({"image": "png", "caption": "cls"})]
    done = subprocess.run(
        [sys.executable, "-m", "megatron.energon.cli.main", "prepare", *options, *fields, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(energon)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    known = (folder / ".nv-meta" / ".info.json", folder / ".nv-meta" / ".info.yaml")
    text = next(path for path in known if path.exists()).read_text()
    assert all(shard.name in text for shard in digits_set.info.shards)
    assert "200" in text


def test_the_bundled_images_are_the_bundled_pixels(digits_set: ShardSet) -> None:
    from shards.dataset import ShardDataset

    data = digits.load("train")
    pixels = dict(zip(data.keys, data.images, strict=True))
    loaded = ShardDataset(digits_set)
    for sample in (0, 600, 1258):
        image = loaded[sample].image
        key = digits_set.index.place(sample).key
        assert image.mode == "RGB"
        assert image.convert("L").tobytes() == pixels[key].tobytes()
