"""The forms that images come in are read by one rule, in training, probing and shrinking alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nml.images import eight_bit_rgb, open_image
from probes.tasks import open_task
from shards.augment import RandomResizedCrop
from shards.decode import decode_pixels

DEEP = np.linspace(0, 65_535, 32 * 24).astype(np.uint16).reshape(24, 32)
BRIGHT = (DEEP >> 8).astype(np.uint8)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def paletted() -> Image.Image:
    image = Image.fromarray(BRIGHT).convert("P")
    image.info["transparency"] = 0
    return image


EXIF = Image.Exif()
EXIF[0x0112] = 6
CLEAR = Image.merge("RGBA", [Image.fromarray(BRIGHT)] * 3 + [Image.new("L", (32, 24), 0)])
FORMS = {
    "16-bit png": stored(Image.fromarray(DEEP), "PNG"),
    "16-bit tiff": stored(Image.fromarray(DEEP), "TIFF"),
    "16-bit pgm": b"P5 32 24 65535\n" + DEEP.astype(">u2").tobytes(),
    "32-bit tiff": stored(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "palette with transparency": stored(paletted(), "PNG", transparency=0),
    "clear png": stored(CLEAR, "PNG"),
    "turned by EXIF": stored(Image.fromarray(BRIGHT).convert("RGB"), "PNG", exif=EXIF),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_reader_sees_the_same_pixels(form: str, tmp_path: Path) -> None:
    data = FORMS[form]
    expected = np.stack([BRIGHT] * 3, axis=-1)
    assert np.array_equal(decode_pixels(data), expected)
    assert np.array_equal(np.asarray(eight_bit_rgb(open_image(data))), expected)
    whole = RandomResizedCrop(size=24, scale=(1, 1), ratio=(1, 1), flip=0)
    assert np.abs(whole.from_bytes(data).float().mean() - expected.mean()) < 3
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(data)
    image = open_task(f"imagefolder:{tmp_path},{tmp_path},shifts=none").train.read(0)
    # As encoders take it.
    assert np.array_equal(np.asarray(image.convert("RGB")), expected)


def test_a_cmyk_jpeg_is_the_same_at_both_ends(tmp_path: Path) -> None:
    data = stored(Image.fromarray(BRIGHT).convert("CMYK"), "JPEG")
    pixels = decode_pixels(data)
    assert np.array_equal(np.asarray(eight_bit_rgb(open_image(data))), pixels)
    assert np.abs(pixels.mean(axis=-1) - BRIGHT).max() < 40
