"""Twelve images of three classes, and the files that sources read them from."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from shards import write


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


IMAGES = [jpeg(number) for number in range(12)]
LABELS = [number % 3 for number in range(12)]
NAMES = ["cat", "dog", "emu"]


def run(source: str, out: Path, *more: str) -> None:
    write.main(["--source", source, "--noise", "0", "0.25", "--out", str(out), *more])


def make_tar(path: Path, ending: str, values: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (image, value) in enumerate(zip(IMAGES, values, strict=True)):
            for extension, content in (("jpg", image), (ending, value.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
