"""Write shards, side by side: this project, GNU tar, webdataset's ShardWriter, streaming's MDSWriter.

    python benchmarks/shards_write.py --images FOLDER [--samples 5000] [--streaming-python PYTHON]

FOLDER holds one folder a class; its images are repeated until there are enough. Everything happens
in memory (--scratch, default /dev/shm) and on one core, but for "ours, 2 workers". Ours includes the
scan, the noise plan of four levels, the SHA-256 of every image, manifest and index. "SHA-256" reads
and hashes every image, "copy" reads and writes every image, "copy + SHA-256" does both and nothing
else: no writer that hashes can be faster. mosaicml-streaming may live in an environment of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

RATIOS = ("0.05", "0.1", "0.2", "0.3")


def replicate(images: Path, target: Path, samples: int) -> int:
    """Copy images into ``target``, class by class, until there are ``samples``; return their bytes."""
    found = sorted(path for path in images.rglob("*") if path.is_file())
    total = 0
    for number in range(samples):
        source = found[number % len(found)]
        copy = target / source.parent.name / f"{number:06d}{source.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        total += copy.stat().st_size
    return total


def ours(source: Path, out: Path, workers: int = 1) -> None:
    from shards.layout import ShardLimits
    from shards.sources import open_source
    from shards.writing import WriteRequest, write_set

    request = WriteRequest(
        source=f"imagefolder:{source}",
        ratios=tuple(map(Fraction, RATIOS)),
        model=None,
        model_file=None,
        seed=0,
        limits=ShardLimits(256_000_000, 10_000),
        options={},
    )
    write_set(out, request, lambda: open_source(request.source), workers=workers)


def gnu_tar(source: Path, out: Path) -> None:
    out.mkdir()
    subprocess.run(["tar", "-cf", str(out / "all.tar"), "-C", str(source), "."], check=True)


def shard_writer(source: Path, out: Path) -> None:
    import webdataset

    out.mkdir()
    folders = sorted(source.iterdir())
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256_000_000, verbose=0) as sink:
        for label, folder in enumerate(folders):
            for path in sorted(folder.iterdir()):
                record = {"label": label, "label_n20": label}
                sink.write(
                    {
                        "__key__": f"{folder.name}_{path.stem}",
                        "jpg": path.read_bytes(),
                        "cls": label,
                        "json": record,
                    }
                )


def mds_writer(source: Path, out: Path, hashes: Sequence[str] = ("sha256",)) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(out), columns=columns, hashes=list(hashes), size_limit=256_000_000) as sink:
        for label, folder in enumerate(sorted(source.iterdir())):
            for path in sorted(folder.iterdir()):
                sink.write({"image": path.read_bytes(), "label": label})


def least(source: Path, out: Path, *, write: bool, digest: bool) -> None:
    """Read every image; hash it, or write it to one file, or both, in the order of their names."""
    out.mkdir()
    buffer = memoryview(bytearray(64 << 20))
    with (out / "all").open("wb", buffering=0) as file:
        for folder in sorted(source.iterdir()):
            for path in sorted(folder.iterdir()):
                descriptor = os.open(path, os.O_RDONLY)
                image = buffer[: os.preadv(descriptor, [buffer], 0)]
                os.close(descriptor)
                if digest:
                    hashlib.sha256(image).digest()
                if write:
                    file.write(image)


STREAMING = ("MDSWriter, sha256", "MDSWriter, no hash")
WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "ours": ours,
    "ours, 2 workers": partial(ours, workers=2),
    "GNU tar": gnu_tar,
    "ShardWriter": shard_writer,
    "MDSWriter, sha256": mds_writer,
    "MDSWriter, no hash": partial(mds_writer, hashes=()),
    "SHA-256": partial(least, write=False, digest=True),
    "copy": partial(least, write=True, digest=False),
    "copy + SHA-256": partial(least, write=True, digest=True),
}


def timed(name: str, source: Path, out: Path, python: str) -> tuple[float, float]:
    """Return the seconds and the CPU seconds that one writer takes, imports left out."""
    command = [python, __file__, "--one", name, "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    seconds, cpu = map(float, done.stdout.split()[-2:])
    return seconds, cpu


def run_one(name: str, source: Path, out: Path) -> None:
    if name != "ours, 2 workers":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    modules = {
        "ours": ("shards.writing", "shards.noise.symmetric", "shards.sources.image_folder"),
        "Shar": ("webdataset",),
        "MDSW": ("streaming",),
    }
    for module in modules.get(name[:4], ()):
        importlib.import_module(module)
    if name.startswith("ours") and importlib.util.find_spec("pandas"):
        # pyarrow imports it, where it is installed, on the first list it is given.
        importlib.import_module("pandas")
    start, start_cpu = time.perf_counter(), cpu_seconds()
    WRITERS[name](source, out)
    print(time.perf_counter() - start, cpu_seconds() - start_cpu)


def cpu_seconds() -> float:
    """Return user and system time of this process and the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--streaming-python", default="", help="an interpreter that has mosaicml-streaming")
    parser.add_argument("--one", choices=WRITERS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.source, arguments.out)
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source = Path(scratch, "images")
        total = replicate(arguments.images, source, arguments.samples)
        each = total / arguments.samples / 1000
        print(f"{arguments.samples} images, {each:.0f} kB each, best of {arguments.repeats}")
        wall: dict[str, float] = {}
        cpu: dict[str, float] = {}
        # In turns, so that whatever else the machine does falls on all of them.
        for _ in range(arguments.repeats):
            for name in WRITERS:
                python = arguments.streaming_python if name in STREAMING else sys.executable
                if python:
                    seconds, busy = timed(name, source, Path(scratch, "out"), python)
                    wall[name] = max(wall.get(name, 0.0), arguments.samples / seconds)
                    cpu[name] = max(cpu.get(name, 0.0), arguments.samples / busy)
        print(f"{'':18} {'samples/s':>10} {'ours / it':>10} {'samples/CPU s':>14} {'ours / it':>10}")
        for name in wall:
            ratios = wall["ours"] / wall[name], cpu["ours"] / cpu[name]
            print(f"{name:18} {wall[name]:10,.0f} {ratios[0]:10.2f} {cpu[name]:14,.0f} {ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
