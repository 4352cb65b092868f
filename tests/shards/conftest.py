"""What the tests of shard sets share: real data where it is, and small sets written once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from shards.layout import ShardLimits
from shards.shardset import ShardSet
from shards.sources import open_source
from shards.writing import WriteRequest, write_set
from tests.shards.small_sources import IMAGES, LABELS, NAMES


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("NML_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data is not there: {folder} (name another folder with NML_TEST_DATA)")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = tmp_path / "train" / NAMES[label] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return tmp_path / "train"


def make_request(source: str = "digits", *ratios: str, **changes: Any) -> WriteRequest:
    """Return a request with small shards."""
    settings: dict[str, Any] = {
        "source": source,
        "ratios": tuple(map(Fraction, ratios or ("0", "0.2"))),
        "model": None,
        "model_file": None,
        "seed": 0,
        "limits": ShardLimits(1_000_000_000, 200),
        "options": {},
    }
    return WriteRequest(**{**settings, **changes})


def write(out: Path, request: WriteRequest, workers: int = 1) -> ShardSet:
    """Write a set and open it."""
    write_set(out, request, lambda: open_source(request.source, **request.options), workers=workers)
    return ShardSet.open(out)


@pytest.fixture(scope="session")
def written() -> Callable[..., ShardSet]:
    return write


@pytest.fixture(scope="session")
def requested() -> Callable[..., WriteRequest]:
    return make_request


@pytest.fixture(scope="session")
def digits_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The bundled digits at 0, 0.1, 0.2 and 0.3 in 7 shards; not to be changed."""
    return write(tmp_path_factory.mktemp("sets") / "digits", make_request("digits", "0", "0.1", "0.2", "0.3"))


@pytest.fixture
def copied(digits_set: ShardSet, tmp_path: Path) -> Path:
    """A copy of the bundled digits' set that a test may change."""
    return Path(shutil.copytree(digits_set.path, tmp_path / "copy"))
