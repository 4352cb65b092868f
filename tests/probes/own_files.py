"""Small data sets in files, as users have them: a table, a folder a class, tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, 0)).save(file, "PNG")
    return file.getvalue()


def write_table(path: Path, labels: list[object]) -> Path:
    images = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(number))
    return root


def write_tar(path: Path, samples: list[dict[str, bytes]], folder: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"{folder}s{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
