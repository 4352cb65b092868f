"""The forms that images come in are read by one rule, in training, probing and shrinking alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from nml.image_forms import CLEAR as CLEAR_PIXELS
from nml.image_forms import CMYK, FLOATS, TURNED, unusual_forms
from nml.image_forms import DEEP as DEEP_SAMPLES
from nml.images import eight_bit_rgb, open_image
from probes.tasks import open_task
from shards import write
from shards.augment import RandomResizedCrop
from shards.dataset import ShardDataset
from shards.decode import decode_pixels
from shards.shardset import ShardSet
from shards.verify import verify

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
    "floats of 0 to 1": stored(Image.fromarray(BRIGHT / np.float32(255)), "TIFF"),
    "floats of 0 to 255": stored(Image.fromarray(BRIGHT.astype(np.float32)), "TIFF"),
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


COUNTED = {
    "16-bit png": DEEP_SAMPLES,
    "16-bit tiff": DEEP_SAMPLES,
    "32-bit tiff": DEEP_SAMPLES,
    "floats of 0 to 1": FLOATS,
    "floats of 0 to 255": FLOATS,
    "palette with transparency": CLEAR_PIXELS,
    "clear png": CLEAR_PIXELS,
    "turned by EXIF": TURNED,
    "turned jpeg": TURNED,
    "cmyk": CMYK,
    "cmyk tiff": CMYK,
    "clear webp": CLEAR_PIXELS,
    "clear lossless webp": CLEAR_PIXELS,
    "clear tiff": CLEAR_PIXELS,
    "turned webp": TURNED,
    "turned tiff": TURNED,
}
PLAIN = ["plain jpeg", "plain gif", "plain tiff", "plain webp", "plain lossless webp"]


def test_floats_that_are_no_numbers_are_black_or_white() -> None:
    values = np.array([[0, 0.5, np.nan, np.inf, -np.inf, -3, 1]], np.float32)
    read = decode_pixels(stored(Image.fromarray(values), "TIFF"))[0, :, 0]
    assert read.tolist() == [0, 128, 0, 255, 0, 0, 255]


@pytest.mark.parametrize("form", sorted({*FORMS, *COUNTED, *PLAIN}))
def test_unusual_forms_are_told_by_their_headers_and_damage_by_nothing(form: str) -> None:
    image = Image.fromarray(BRIGHT).convert("RGB")
    more = {
        "turned jpeg": stored(image, "JPEG", exif=EXIF),
        "plain jpeg": stored(image, "JPEG", exif=Image.Exif()),
        "cmyk": stored(image.convert("CMYK"), "JPEG"),
        "clear webp": stored(CLEAR, "WEBP"),
        "plain gif": stored(image, "GIF"),
        "cmyk tiff": stored(image.convert("CMYK"), "TIFF"),
        "clear lossless webp": stored(CLEAR, "WEBP", lossless=True),
        "clear tiff": stored(CLEAR, "TIFF"),
        "turned webp": stored(image, "WEBP", exif=EXIF),
        "turned tiff": stored(image, "TIFF", exif=EXIF),
        "plain tiff": stored(image, "TIFF"),
        "plain webp": stored(image, "WEBP"),
        "plain lossless webp": stored(image, "WEBP", lossless=True),
    }
    data = memoryview((FORMS | more)[form])
    assert list(unusual_forms(data)) == ([COUNTED[form]] if form in COUNTED else [])
    for end in range(0, len(data), 7):
        assert len(list(unusual_forms(data[:end]))) <= 1


def test_the_report_of_a_write_counts_them_and_upright_turns_what_is_turned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)).convert("RGB")
    images = [stored(steps, "JPEG", exif=EXIF), stored(steps.resize((20, 16)), "JPEG", exif=EXIF)]
    images += [FORMS["16-bit png"], stored(steps, "JPEG")]
    for number, data in enumerate(images):
        (tmp_path / "train" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg").write_bytes(data)
    command = ["--source", f"imagefolder:{tmp_path / 'train'}", "--max-shard-count", "3", "--workers", "1"]
    write.main([*command, "--out", str(tmp_path / "set")])
    told = capsys.readouterr().out
    assert "2 of 4 images came with an EXIF orientation" in told
    assert "1 of 4 images came with 16 bits a sample" in told
    write.main([*command, "--out", str(tmp_path / "small"), "--resize", "24", "--upright"])
    assert "3 of 4 images shrunk to a short side of 24 or turned, as JPEG" in capsys.readouterr().out
    dataset = ShardDataset(ShardSet.open(tmp_path / "small"))
    sizes = [dataset[sample].image.size for sample in range(4)]
    assert sorted(sizes) == [(16, 20), (24, 32), (32, 24), (32, 24)]
    upright = next(dataset[sample].image for sample in range(4) if sizes[sample] == (24, 32))
    # Turned by a quarter: dark at the top, it is dark at the right.
    pixels = np.asarray(upright).mean(axis=(0, 2))
    assert pixels[0] > pixels[-1] + 150
    assert not [finding for finding in verify(tmp_path / "small") if finding.problem]
    with pytest.raises(UserError, match="--upright: images are copied"):
        write.main([*command, "--out", str(tmp_path / "other"), "--upright"])


def test_a_cmyk_jpeg_is_the_same_at_both_ends(tmp_path: Path) -> None:
    data = stored(Image.fromarray(BRIGHT).convert("CMYK"), "JPEG")
    pixels = decode_pixels(data)
    assert np.array_equal(np.asarray(eight_bit_rgb(open_image(data))), pixels)
    assert np.abs(pixels.mean(axis=-1) - BRIGHT).max() < 40
