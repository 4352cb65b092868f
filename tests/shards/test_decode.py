"""Decoding: fast JPEGs equal Pillow's, a scaled decode stays close, and crops are where they were drawn."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from shards import decode
from shards.augment import RandomResizedCrop
from shards.decode import (
    BadImage,
    Box,
    ImageSize,
    SeveralViews,
    decode_box,
    decode_pixels,
    decode_rgb,
    image_size,
)
from shards.partial_jpeg import run_length

pytest.importorskip("simplejpeg")


def photograph(width: int = 640, height: int = 480, **options: object) -> bytes:
    """Return a JPEG with the smooth areas and the edges of a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        np.sin(x / 37) + np.cos(y / 23),
        np.sin((x + y) / 51),
        np.hypot(x - width / 2, y - height / 2) / 200,
    ]
    pixels = np.stack([127 + 60 * channel for channel in channels], axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (200, 30, 60)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"subsampling": 1}]
)
def test_at_full_size_pixels_are_pillow_s(options: dict) -> None:
    data = photograph(**options)
    difference = np.abs(np.asarray(decode_rgb(data)).astype(int) - pillow(data))
    # Two builds of one library: chroma may round the other way.
    assert difference.max() <= 3
    assert difference.mean() < 0.2


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (20, 10), 128)
    file = io.BytesIO()
    converted = image.convert("I;16" if mode == "I;16" else mode)
    converted.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    assert decode_rgb(file.getvalue()).mode == "RGB"
    assert decode_rgb(file.getvalue()).size == (20, 10)


def test_a_scaled_decode_is_at_least_as_large_as_asked() -> None:
    data = photograph(1000, 800)
    for side in (100, 260, 399, 401, 700):
        image = decode_rgb(data, at_least=ImageSize(side, side))
        assert min(image.size) >= min(side, 800)


def test_without_the_fast_decoder_everything_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph(1000, 800)
    monkeypatch.setattr(decode, "FAST_JPEG", False)
    assert image_size(data) == (1000, 800)
    assert np.array_equal(np.asarray(decode_rgb(data)), pillow(data))
    assert decode_rgb(data, at_least=ImageSize(250, 200)).size == (250, 200)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(BadImage, match="640 x 480 pixels, the limit is 1,000"):
        decode_rgb(photograph(), max_pixels=1000)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", photograph()[:200], b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_what_is_no_image_is_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode_rgb(data)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 2},
        {"subsampling": 1},
        {"subsampling": 0},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"optimize": True, "quality": 30},
    ],
)
@pytest.mark.parametrize("size", [(640, 480), (333, 501), (70, 65)])
def test_rows_decoded_alone_are_the_rows_of_the_whole(options: dict, size: tuple[int, int]) -> None:
    data = photograph(*size, **options)
    whole = decode_pixels(data)
    for rows in (1, 31, 32, 33, size[1] // 2, size[1] - 1, size[1]):
        found = decode_box(data, Box(0, 0, size[0], rows)).pixels
        assert found.shape[1] == size[0]
        assert np.array_equal(found[:rows], whole[:rows])
    if not options.get("progressive") and size[1] > 100:
        assert len(decode_box(data, Box(0, 0, 1, 10)).pixels) < size[1]


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_any_number_of_rows_is_that_much_of_the_whole_and_hardly_more(subsampling: str) -> None:
    import simplejpeg

    noise = np.random.default_rng(0).integers(0, 256, (70, 65, 3), dtype=np.uint8)
    data = simplejpeg.encode_jpeg(noise, colorsubsampling=subsampling)
    whole = decode_pixels(data)
    for rows in range(1, 71):
        found = decode_box(data, Box(0, 0, 1, rows)).pixels
        assert np.array_equal(found[:rows], whole[:rows]), rows
        assert len(found) <= rows + 2


def test_rows_of_real_photographs_are_those_of_the_whole(real_data: Path) -> None:
    for path in sorted((real_data / "imagenet-sample").rglob("*.JPEG"))[::6]:
        data = path.read_bytes()
        whole = decode_pixels(data)
        rows = len(whole) // 3
        found = decode_box(data, Box(0, 0, 1, rows)).pixels
        assert np.array_equal(found[:rows], whole[:rows]), path


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(341, 256), (256, 272), (368, 257), (20, 40)])
def test_a_box_of_a_jpeg_with_restart_markers_is_decoded_without_what_is_beside_it(
    subsampling: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photograph(*size, subsampling=subsampling, restart_marker_blocks=run_length(size[0]))
    whole = decode_pixels(data)
    # Of what a box needs, the decoder alone says whether it is whole.
    monkeypatch.setattr("shards.decode._top_of_jpeg", lambda *_: None)
    chance = random.Random(0)
    decoded = []
    for _ in range(200):
        width, height = chance.randint(1, size[0]), chance.randint(1, size[1])
        box = Box(chance.randint(0, size[0] - width), chance.randint(0, size[1] - height), width, height)
        pixels, left, top = decode_box(data, box)
        found = pixels[box.top - top :, box.left - left :][:height, :width]
        assert np.array_equal(found, whole[box.top : box.top + height, box.left : box.left + width]), box
        decoded.append(pixels.size / whole.size)
    if subsampling == "4:2:0" and min(size) > 100:
        assert sum(decoded) / len(decoded) < 0.6


def test_restart_markers_out_of_order_are_left_to_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph(341, 256, subsampling="4:2:0", restart_marker_blocks=2)
    wrong = data.replace(b"\xff\xd3", b"\xff\xd4")
    found = decode_box(wrong, Box(10, 10, 300, 200))
    monkeypatch.setattr("shards.decode.cut_out", lambda *_: None)
    assert np.array_equal(found.pixels, decode_box(wrong, Box(10, 10, 300, 200)).pixels)


def test_a_photograph_cut_short_is_bad_also_where_the_crop_is_above_the_cut() -> None:
    data = photograph()
    with pytest.raises(BadImage):
        decode_box(data[: len(data) * 3 // 4], Box(0, 0, 1, 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_changed_bytes_give_an_image_or_a_bad_image_and_nothing_else(kind: str) -> None:
    file = io.BytesIO()
    options = {"restart_marker_blocks": 1} if kind == "JPEG" else {}
    Image.open(io.BytesIO(photograph(80, 60))).save(file, kind, **options)
    chance = random.Random(kind)
    refused = 0
    for _ in range(150):
        data = bytearray(file.getvalue())
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data) if chance.random() < 0.3 else min(400, len(data)))] = (
                chance.randrange(256)
            )
        try:
            box = Box(0, 0, chance.choice([1, 80]), chance.choice([20, 60]))
            pixels = decode_box(bytes(data), box, max_pixels=10**6).pixels
        except BadImage:
            refused += 1
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
    assert refused > 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_blocks": 4}), ("PNG", {})],
)
def test_boxes_of_an_image_decoded_once_are_those_of_the_bytes_alone(kind: str, options: dict) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(photograph(128, 96))).save(file, kind, **options)
    chance = random.Random(kind)
    boxes = [Box(30, 50, 60, 46), Box(0, 0, 128, 20), Box(5, 6, 40, 70), Box(0, 0, 128, 96)]

    def seen(data: bytes, box: Box) -> bytes | None:
        try:
            pixels, left, top = decode_box(data, box)
        except BadImage:
            return None
        return pixels[box.top - top :, box.left - left :][: box.height, : box.width].tobytes()

    whole = SeveralViews(file.getvalue())
    first, *others = [decode_box(whole, box).pixels for box in boxes]
    assert all(pixels is first for pixels in others)
    for changes in range(40):
        data = bytearray(file.getvalue())
        for _ in range(changes // 4):
            data[chance.randrange(len(data) // 3, len(data))] = chance.randrange(256)
        views = SeveralViews(data)
        chance.shuffle(boxes)
        assert [seen(views, box) for box in boxes] == [seen(bytes(data), box) for box in boxes]


def of_torchvision(data: bytes, crop: RandomResizedCrop, box: Box) -> torch.Tensor:
    """Return what torchvision makes of a box of Pillow's decoding."""
    mode = functional.InterpolationMode(crop.interpolation)
    corner = (box.top, box.left, box.height, box.width)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return functional.pil_to_tensor(functional.resized_crop(image, *corner, [crop.size, crop.size], mode))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_torchvision_s_of_the_same_box(interpolation: str) -> None:
    data = photograph()
    for seed in range(20):
        crop = RandomResizedCrop(size=64, flip=0, interpolation=interpolation)
        random.seed(seed)
        found = crop.from_bytes(data)
        random.seed(seed)
        expected = of_torchvision(data, crop, crop.draw(ImageSize(640, 480)))
        assert found.shape == (3, 64, 64)
        assert found.dtype == torch.uint8
        difference = (found.int() - expected.int()).abs()
        assert difference.float().mean() < 0.5
        assert difference.max() <= 12


def test_a_real_crop_is_torchvision_s_of_the_same_box(real_data: Path) -> None:
    for seed, path in enumerate(sorted((real_data / "imagenet-sample").rglob("*.JPEG"))[::4]):
        data = path.read_bytes()
        crop = RandomResizedCrop(flip=0, interpolation="bicubic", scaled_decode=False)
        random.seed(seed)
        found = crop.from_bytes(data)
        random.seed(seed)
        difference = (found.int() - of_torchvision(data, crop, crop.draw(image_size(data))).int()).abs()
        assert difference.float().mean() < 0.5, path
        assert difference.max() <= 24, path


def mean_difference(data: bytes, seeds: int) -> tuple[float, float]:
    """Return the mean and the largest mean difference of scaled from full decoding, in grey levels of 255."""
    differences = []
    for seed in range(seeds):
        results = []
        for scaled in (False, True):
            random.seed(seed)
            crop = RandomResizedCrop(size=48, scaled_decode=scaled)
            results.append(crop.from_bytes(data).to(torch.float64))
        differences.append(float((results[0] - results[1]).abs().mean()))
    return float(np.mean(differences)), max(differences)


def test_a_scaled_decode_changes_a_crop_by_little() -> None:
    mean, largest = mean_difference(photograph(1600, 1200), 30)
    assert 0 < mean < 0.5
    assert largest < 1


def test_a_scaled_decode_changes_a_real_crop_by_little(real_data: Path) -> None:
    images = sorted((real_data / "imagenet-sample").rglob("*.JPEG"))[:12]
    if not images:
        pytest.skip("imagenet-sample is not there")
    for path in images:
        mean, largest = mean_difference(path.read_bytes(), 6)
        assert mean < 3, path
        assert largest < 6, path


def test_boxes_cover_the_asked_share_and_stay_inside() -> None:
    random.seed(0)
    crop = RandomResizedCrop(scale=(0.2, 0.6))
    for _ in range(500):
        box = crop.draw(ImageSize(500, 333))
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= 500
        assert box.top + box.height <= 333
        assert 0.19 < box.width * box.height / (500 * 333) < 0.61


def test_an_extreme_image_gets_the_central_box() -> None:
    random.seed(0)
    assert RandomResizedCrop(scale=(1, 1)).draw(ImageSize(1000, 10)) == Box(493, 0, 13, 10)


def test_bytes_and_decoded_images_give_the_same_crop() -> None:
    data = photograph(300, 200)
    crop = RandomResizedCrop(size=64)
    random.seed(1)
    first = crop.from_bytes(data)
    random.seed(1)
    assert torch.equal(first, crop(decode_rgb(data)))
