"""Twelve images of three classes, and the files that sources read them from."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards import write
from shards.shardset import ShardSet
from shards.verify import verify


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


IMAGES = [jpeg(number) for number in range(12)]
LABELS = [number % 3 for number in range(12)]
NAMES = ["cat", "dog", "emu"]


def run(source: str, out: Path, *more: str) -> None:
    noise = [] if "--noise" in more else ["--noise", "0", "0.25"]
    write.main(["--source", source, *noise, "--out", str(out), *more])


def make_tar(path: Path, ending: str, values: list[str], images: Sequence[bytes] = IMAGES) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (image, value) in enumerate(zip(images, values, strict=True)):
            for extension, content in (("jpg", image), (ending, value.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def check(out: Path, classes: tuple[str, ...] | None = tuple(NAMES)) -> ShardSet:
    """Hold a written set to the images and labels above."""
    shard_set = ShardSet.open(out)
    assert shard_set.num_samples == 12
    assert shard_set.classes == classes
    found = {}
    for sample in range(12):
        place = shard_set.index.place(sample)
        data = (out / f"shard-{place.shard:06d}.tar").read_bytes()[place.offset : place.offset + place.size]
        assert hashlib.sha256(data).digest() == place.sha256
        found[data] = shard_set.index.supervision(sample, "label")
    assert found == dict(zip(IMAGES, LABELS, strict=True))
    assert not [finding for finding in verify(out) if finding.problem]
    return shard_set
