"""Peak memory and time of planning and finishing a set of many rows, all with the same image of few bytes.

    python benchmarks/shards_scale.py --rows 15000000 [--kind caption] [--folder /scratch/scale] [--index]

With ``--index``, of indexing as many rows in tars. They are made, walked and emptied part by part, so that
no more than the tars of one part (2 kB a row) are on the disk.

Each step runs in a process of its own. The shards themselves are not packed: each row's image stands for the
record that a packing process leaves of it, since finishing reads these and no shard. Packing a shard takes as
much memory for a set of any size.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 1000
PER_SHARD = 10_000
INDEX_PARTS = 10
IMAGE = b"GIF89a" + bytes(58)


class SyntheticSource:
    """Rows that all have one image, which lies in a file."""

    held_out = False
    parent = None

    def __init__(self, rows: int, kind: Any, image: Path) -> None:
        self.kind = kind
        self.classes = tuple(map(str, range(CLASSES))) if kind == "class" else None
        self._rows, self._image = rows, image

    def __iter__(self) -> Iterator[Any]:
        from nml.sources import ByteRange, Example

        place = ByteRange(str(self._image), 0, self._image.stat().st_size)
        for row in range(self._rows):
            caption = f"the {row}th photograph of something that a crawl has found"
            yield Example(f"{row:09d}", row * 7919 % CLASSES if self.kind == "class" else caption, place)


def request(source: str) -> Any:
    from shards.layout import ShardLimits
    from shards.request import WriteRequest

    return WriteRequest(
        source=source,
        ratios=(Fraction(0), Fraction("0.1"), Fraction("0.3")),
        model=None,
        model_file=None,
        seed=0,
        limits=ShardLimits(10**9, PER_SHARD),
        options={},
    )


def plan(folder: Path, rows: int, kind: str) -> None:
    from shards.writing import plan_set

    image = folder / "image.gif"
    image.write_bytes(IMAGE)
    source = SyntheticSource(rows, kind, image)
    plan_set(folder / "set", request(f"synthetic:{rows}"), lambda: source)


def records(folder: Path) -> None:
    """Leave what packing leaves, but no images: a shard is a file of its size without content."""
    from shards.destination import open_destination
    from shards.packing import PackedShard
    from shards.packshards import ShardPacker
    from shards.planning import read_plan

    destination = open_destination(folder / "set")
    made = read_plan(destination)
    assert made is not None
    packer = ShardPacker(destination, made)
    for number in range(made.shards):
        found = packer._rows.read(number)
        assert found is not None
        count = len(found)
        offsets = np.arange(count) * 2048
        columns = {
            "image_extension": ["gif"] * count,
            "image_offset": offsets,
            "image_size": np.full(count, 64),
            "supervision_offset": offsets + 1024,
            "supervision_size": np.full(count, 3),
            "json_offset": offsets + 1536,
            "json_size": np.full(count, 60),
            "sha256": [bytes(32)] * count,
        }
        (folder / "set" / f"shard-{number:06d}.tar").touch()
        with (folder / "set" / f"shard-{number:06d}.tar").open("r+b") as file:
            file.truncate(2048 * count)
        values = {column: found[column] for column in packer._columns}
        packed = PackedShard(2048 * count, "0" * 64, columns, {})  # type: ignore[arg-type]
        packer._write_record(number, found, values, packed)


def finish(folder: Path) -> None:
    from shards.writing import finish_set

    finish_set(folder / "set")


def _tar(first: int, kind: str) -> bytes:
    """Return a tar of PER_SHARD rows, in the tar format's shortest form."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(first, first + PER_SHARD):
            caption = f"the {row}th photograph of something that a crawl has found".encode()
            label = str(row * 7919 % CLASSES).encode()
            members = {"gif": IMAGE, **({"cls": label} if kind == "class" else {"txt": caption})}
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{row:09d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def walk(folder: Path, rows: int, kind: str) -> None:
    """Walk all tars by parts, of which one part at a time has content."""
    from shards.index import main as index

    tars = [folder / f"{number:06d}.tar" for number in range(rows // PER_SHARD)]
    size = len(_tar(0, kind))

    def empty(tar: Path) -> None:
        tar.unlink(missing_ok=True)
        tar.touch()
        os.truncate(tar, size)
        os.utime(tar, (0, 0))

    for tar in tars:
        empty(tar)
    for part in range(INDEX_PARTS):
        for number in range(part, len(tars), INDEX_PARTS):
            tars[number].write_bytes(_tar(number * PER_SHARD, kind))
            os.utime(tars[number], (0, 0))
        index([str(folder), "--part", f"{part + 1}/{INDEX_PARTS}"])
        # The first tells what its samples have.
        for number in range(part or INDEX_PARTS, len(tars), INDEX_PARTS):
            empty(tars[number])


def index(folder: Path) -> None:
    from shards.index import main

    main([str(folder)])


STEPS: dict[str, Callable[[Path, int, str], None]] = {
    "plan": plan,
    "records": lambda folder, _rows, _kind: records(folder),
    "finish": lambda folder, _rows, _kind: finish(folder),
    "walk": walk,
    "index": lambda folder, _rows, _kind: index(folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=15_000_000)
    parser.add_argument("--kind", choices=["class", "caption"], default="class")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--index", action="store_true", help="measure shards.index instead")
    parser.add_argument("--step", choices=STEPS, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        start = time.monotonic()
        STEPS[options.step](options.folder, options.rows, options.kind)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = time.monotonic() - start
        print(f"{options.step:8} {options.rows:,} rows: {seconds:7.0f} s, peak {peak:.2f} GB", flush=True)
        return
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    for step in ("walk", "index") if options.index else ("plan", "records", "finish"):
        command = [sys.executable, __file__, "--rows", str(options.rows), "--kind", options.kind]
        subprocess.run([*command, "--folder", str(folder), "--step", step], check=True)
        if step == "plan":
            size = sum(path.stat().st_size for path in (folder / "set" / ".writing").iterdir())
            print(f"the plan has {size / options.rows:.0f} bytes a row")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
