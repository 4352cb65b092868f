"""Other people's readers see the same samples: webdataset 1 and 0.2.86, open_clip_train, timm, Energon.

webdataset 0.2.86, which open_clip_train needs, is fetched into a folder of its own that stands before
the installed one. Megatron-Energon needs an environment of its own: NML_TEST_ENERGON_PYTHON names its
interpreter.
"""

from __future__ import annotations

import json
import os
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


def interpreter(variable: str) -> str:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter")
    return python


@pytest.fixture(scope="session")
def old_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with webdataset 0.2.86 alone; all it imports is in the running environment."""
    folder = tmp_path_factory.mktemp("webdataset-0.2.86")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
    fetched = subprocess.run(
        [*command, "--target", str(folder), "webdataset==0.2.86"], capture_output=True, text=True, timeout=120
    )
    if fetched.returncode:
        pytest.skip(f"webdataset 0.2.86 cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    return folder


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


def test_energon_prepares_the_set(digits_set: ShardSet, tmp_path: Path) -> None:
    import shutil

    python = interpreter("NML_TEST_ENERGON_PYTHON")
    folder = shutil.copytree(digits_set.path, tmp_path / "set")
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"]
    fields = ["--field-map", json.dumps({"image": "png", "caption": "cls"})]
    done = subprocess.run(
        [str(Path(python).with_name("energon")), "prepare", *options, *fields, str(folder)],
        capture_output=True,
        text=True,
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
