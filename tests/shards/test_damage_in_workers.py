"""Damaged sets read by a DataLoader with two workers: one line or a counted skip, and never another label."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from nml.errors import UserError
from shards.dataset import ShardDataset
from shards.layout import ShardLimits
from shards.reader import read_ledger
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet
from tests.shards.hostile_images import jpeg_bomb, png_bomb
from tests.shards.loaders import batches

pytestmark = pytest.mark.timeout(120)
SAMPLES = 96


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, written: Callable, requested: Callable) -> ShardSet:
    folder = tmp_path_factory.mktemp("whole")
    pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "images" / f"class{number % 6}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    request = requested(f"imagefolder:{folder / 'images'}", "0", "0.25", limits=ShardLimits(10**9, 24))
    return written(folder / "set", request)


@pytest.fixture
def copied(whole: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "copy"))


def pixels_of(image: Image.Image) -> bytes:
    return image.tobytes()


def read(folder: Path, workers: int = 2, **options: object) -> dict[int, tuple[bytes, int]]:
    """Read every sample, as training does, and return pixels and label by sample number."""
    shard_set = ShardSet.open(folder)
    dataset = ShardDataset(shard_set, "n25", pixels_of, **options)
    sampler = ElasticBatchSampler(shard_set, global_batch=16, streams=8)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return {sample.index: (sample.image, sample.target) for batch in batches(loader) for sample in batch}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    told = str(error.value)
    assert "\n" not in told
    assert "Traceback" not in told
    assert "Caught" not in told
    return told


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def flip_image(folder: Path, sample: int) -> str:
    """Damage a sample's image and return its key."""
    place = ShardSet.open(folder).index.place(sample)
    flip(folder / f"shard-{place.shard:06d}.tar", place.offset + place.size // 2)
    return place.key


def test_a_flipped_byte_of_an_image_is_one_line_that_names_it(copied: Path) -> None:
    key = flip_image(copied, 40)
    with pytest.raises(UserError) as error:
        read(copied)
    assert f"sample {key} of shard-000001.tar: the image does not match its SHA-256" in one_line(error)


def test_within_the_budget_it_is_skipped_and_counted_and_all_other_labels_stay(
    copied: Path, whole: ShardSet, tmp_path: Path
) -> None:
    keys = {flip_image(copied, sample) for sample in (3, 40)}
    found = read(copied, skip_budget=2 / SAMPLES + 1e-9, ledger=tmp_path / "ledger")
    expected = read(Path(whole.path))
    assert found == {sample: value for sample, value in expected.items() if sample not in (3, 40)}
    assert {entry["key"] for entry in read_ledger(tmp_path / "ledger")} == keys


def test_a_set_with_nothing_whole_in_it_ends_instead_of_searching_for_ever(copied: Path) -> None:
    for sample in range(SAMPLES):
        flip_image(copied, sample)
    with pytest.raises(UserError) as error:
        read(copied, skip_budget=1.0)
    assert "no sample can be read" in one_line(error)


@pytest.mark.parametrize("keep", [0, 3000])
def test_a_shard_cut_short_while_training_reads_it_is_one_line(copied: Path, keep: int) -> None:
    shard_set = ShardSet.open(copied)
    sampler = ElasticBatchSampler(shard_set, global_batch=16, streams=8)
    loader = iter(DataLoader(ShardDataset(shard_set, "n25", pixels_of), batch_sampler=sampler, num_workers=0))
    next(loader)
    with (copied / "shard-000002.tar").open("r+b") as file:
        file.truncate(keep)
    with pytest.raises(UserError, match=r"of shard-000002\.tar: the shard ends after \d+ of"):
        list(loader)


def test_a_shard_deleted_while_training_is_one_line(copied: Path) -> None:
    shard_set = ShardSet.open(copied)
    dataset = ShardDataset(shard_set, "n25", pixels_of)
    (copied / "shard-000003.tar").unlink()
    sampler = ElasticBatchSampler(shard_set, global_batch=16, streams=8)
    with pytest.raises(UserError) as error:
        list(batches(DataLoader(dataset, batch_sampler=sampler, num_workers=2)))
    assert "of shard-000003.tar: No such file" in one_line(error)


@pytest.mark.parametrize(("extension", "bomb"), [("png", png_bomb), ("jpg", jpeg_bomb)], ids=["png", "jpg"])
def test_a_pixel_bomb_is_one_line_or_a_counted_skip(
    extension: str, bomb: Callable, tmp_path: Path, whole: ShardSet, written: Callable, requested: Callable
) -> None:
    images = Path(shutil.copytree(Path(whole.path).parent / "images", tmp_path / "images"))
    (images / "class0" / "000.png").unlink()
    (images / "class0" / f"000.{extension}").write_bytes(bomb(50_000, 50_000))
    request = requested(f"imagefolder:{images}", "0", "0.25", limits=ShardLimits(10**9, 24))
    folder = Path(written(tmp_path / "set", request).path)
    with pytest.raises(UserError) as error:
        read(folder)
    assert "pixels" in one_line(error)
    found = read(folder, skip_budget=0.02, ledger=tmp_path / "ledger")
    assert len(found) == SAMPLES - 1
    assert [entry["key"] for entry in read_ledger(tmp_path / "ledger")] == ["class0_000"]
