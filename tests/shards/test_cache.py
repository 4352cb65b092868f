"""A cache of decoded images: what it holds, how far that is from the images, and when it is not read."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nml.errors import UserError
from shards import cache, relabel
from shards.augment import RandomResizedCrop
from shards.dataset import ShardDataset
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet
from shards.yuv import to_rgb, unpacked
from shards.yuv_cache import YuvCache, cache_folder
from tests.shards.small_sources import run

SIZES = [(96, 64), (61, 47), (40, 32), (50, 120), (33, 33), (32, 31)]
SIDE = 40


@pytest.fixture
def smooth(tmp_path: Path) -> Path:
    """Twelve smooth images of three classes, twice each of six sizes, in several shards."""
    for number in range(12):
        width, height = SIZES[number % 6]
        y, x = np.mgrid[0:height, 0:width]
        waves = (np.sin(x / 17 + number), np.cos(y / 23), np.sin((x + y) / 31))
        pixels = np.stack([127 + 90 * wave for wave in waves], axis=-1).astype(np.uint8)
        path = tmp_path / "images" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    run(f"imagefolder:{tmp_path / 'images'}", tmp_path / "set", "--max-shard-count", "5")
    return tmp_path / "set"


def made(path: Path) -> ShardSet:
    cache.main([str(path), "--size", str(SIDE), "--workers", "2"])
    return ShardSet.open(path)


def crops(shard_set: ShardSet, side: int, **options: object) -> torch.Tensor:
    crop = RandomResizedCrop(size=32, interpolation="bicubic", **options)  # type: ignore[arg-type]
    dataset = ShardDataset(shard_set, "n25", crop, seed=3, cache=side)
    return torch.stack([sample.image for sample in dataset.__getitems__(list(range(12)))])


def test_images_are_those_of_the_set_shrunk_and_so_are_crops(smooth: Path) -> None:
    shard_set = made(smooth)
    stored, cached = (ShardDataset(shard_set, "n25", cache=side) for side in (0, SIDE))
    for sample in range(12):
        image, target, number = stored[sample]
        small = cached[sample]
        assert (small.target, small.index) == (target, number)
        scale = min(1, SIDE / min(image.size))
        assert small.image.size == tuple(round(length * scale) for length in image.size)
        shrunk = image.resize(small.image.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(shrunk).astype(int) - np.asarray(small.image))
        assert difference.mean() < 1.5
    # The same boxes and flips: other ones differ by 40 and more.
    plain, planes = crops(shard_set, 0).int(), crops(shard_set, SIDE).int()
    assert (plain - planes).abs().float().mean(dim=(1, 2, 3)).max() < 6
    packed = crops(shard_set, SIDE, packed=True)
    assert packed.shape == (12, 32 * 32 * 3 // 2)
    assert (unpacked(packed).int() - planes).abs().float().mean() < 1.5
    assert torch.equal(crops(shard_set, 0, packed=True), plain.to(torch.uint8))


def test_colours_are_those_of_the_formula() -> None:
    planes = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.merge("YCbCr", [Image.fromarray(plane.numpy()) for plane in planes]).convert("RGB")
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).int()
    assert (to_rgb(planes.clone()).int() - expected).abs().max() <= 2
    flat = torch.cat([torch.full((64 * 64,), 90), torch.full((32 * 32,), 60), torch.full((32 * 32,), 200)])
    flat = flat.to(torch.uint8)[None]
    (pixel,) = np.asarray(Image.new("YCbCr", (1, 1), (90, 60, 200)).convert("RGB")).reshape(1, 3).tolist()
    assert (unpacked(flat)[0].flatten(1).int() - torch.tensor(pixel)[:, None]).abs().max() <= 1
    with pytest.raises(UserError, match="even side"):
        RandomResizedCrop(size=33, packed=True)


def test_workers_read_it_and_a_damaged_image_is_named(smooth: Path) -> None:
    shard_set = made(smooth)
    dataset = ShardDataset(shard_set, "n25", RandomResizedCrop(size=32), cache=SIDE, skip_budget=0)
    sampler = ElasticBatchSampler(shard_set, global_batch=4, streams=1, shuffle=False)
    batches = [batch.image for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=1)]
    samples = pickle.loads(pickle.dumps(dataset)).__getitems__(list(range(12)))
    assert torch.equal(torch.cat(batches), torch.stack([each.image for each in samples]))
    planes = cache_folder(str(smooth), SIDE) / "planes-000001.bin"
    content = bytearray(planes.read_bytes())
    content[10] ^= 1
    planes.write_bytes(content)
    with pytest.raises(UserError, match=r"planes-000001\.bin: the planes are not what was written"):
        dataset.__getitems__(list(range(12)))


def test_an_interrupted_cache_is_continued_and_a_made_one_found(
    smooth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache_folder(str(smooth), SIDE)
    made(smooth)
    right = {path.name: path.read_bytes() for path in folder.iterdir()}
    stored = json.loads(right["cache.json"])
    begun = {name: value for name, value in stored.items() if name != "shards"}
    (folder / "begun.json").write_text(json.dumps(begun))
    for name in ("cache.json", "planes-000002.rows", "planes-000001.rows", "planes-000001.bin"):
        (folder / name).unlink()
    (folder / "planes-000002.bin").write_bytes(b"half")
    kept = (folder / "planes-000000.bin").stat().st_mtime_ns
    made(smooth)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == right
    made(smooth)
    assert (folder / "planes-000000.bin").stat().st_mtime_ns == kept
    assert "12 images of a short side of 40 at most" in capsys.readouterr().out
    (folder / "cache.json").unlink()
    (folder / "begun.json").write_text(json.dumps({**begun, "made_by": "Pillow 1"}))
    with pytest.raises(UserError, match="begun there of another set, or by other decoders"):
        made(smooth)


def test_a_cache_stays_valid_for_new_levels_and_is_refused_for_another_set(
    smooth: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"set\.yuv40: there is no cache; make it: python -m shards\.cache"):
        YuvCache(ShardSet.open(smooth), SIDE)
    made(smooth)
    relabel.main([str(smooth), "--noise", "0.5"])
    YuvCache(ShardSet.open(smooth), SIDE)
    folder = cache_folder(str(smooth), SIDE)
    shutil.rmtree(smooth)
    (tmp_path / "images" / "a" / "0.png").unlink()
    run(f"imagefolder:{tmp_path / 'images'}", smooth, "--max-shard-count", "5")
    with pytest.raises(UserError, match="is the cache of another set, or of another state of this one"):
        made(smooth)
    shutil.rmtree(folder)
    made(smooth)
    rows = folder / "planes-000000.rows"
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"damaged: planes-000000\.rows is not what was written"):
        _ = ShardDataset(ShardSet.open(smooth), cache=SIDE)[0]
    (folder / "planes-000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="damaged: files are missing, or of another size"):
        YuvCache(ShardSet.open(smooth), SIDE)
    with pytest.raises(UserError, match="beside a set in a folder"):
        cache_folder("memory://set", SIDE)
