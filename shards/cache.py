"""``python -m shards.cache``: make a set's images a second time, shrunk and decoded, to be read faster."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nml.cli import Parser, is_interactive, run
from nml.errors import UserError
from nml.files import atomic_writer, write_bytes, write_json
from nml.untrusted import Untrusted, read_object
from shards.decode import BadImage
from shards.locking import made_and_locked
from shards.reader import DamagedSample, ShardReader
from shards.resize import encoder_version
from shards.shardset import ShardSet
from shards.write import worker_count
from shards.yuv import planes_of
from shards.yuv_cache import CACHE_FILE, FORMAT, ROW, YuvCache, cache_folder, planes_name, rows_name

PROGRAM = "python -m shards.cache"
# What is made, by what: written first, so that an interrupted command continues its own work alone.
_BEGUN = "begun.json"


def make_cache(shard_set: ShardSet, side: int, *, workers: int) -> Path:
    """Make the cache of a set, or continue to, or find it made; return its folder.

    Args:
        shard_set: The set.
        side: The short side that images are shrunk to, where theirs is longer.
        workers: Shards that are made at a time.

    Raises:
        UserError: If it cannot be made: an image cannot be read, or another cache is there.
    """
    if side < 2:
        raise UserError(f"--size {side}: too small", possible="2 and above, such as 256")
    folder = cache_folder(shard_set.path, side)
    with made_and_locked(folder, shown=str(folder), wait=False):
        if (folder / CACHE_FILE).exists():
            return YuvCache(shard_set, side).folder
        begun = {
            "format": FORMAT,
            "fingerprint": shard_set.fingerprint,
            "short_side": side,
            "made_by": _made_by(),
        }
        _begin(folder, begun)
        numbers = range(len(shard_set.info.shards))
        pool = ThreadPoolExecutor(workers)
        try:
            made = pool.map(lambda number: _make(shard_set, side, folder, number), numbers)
            shards = list(
                tqdm(
                    made,
                    desc="decoding",
                    total=len(numbers),
                    unit=" shards",
                    disable=not is_interactive(),
                )
            )
        finally:
            pool.shutdown(cancel_futures=True)
        write_json(folder / CACHE_FILE, {**begun, "shards": shards})
        (folder / _BEGUN).unlink()
    return folder


def _made_by() -> str:
    fast = importlib.util.find_spec("simplejpeg") is not None
    return encoder_version() + (f", simplejpeg {version('simplejpeg')}" if fast else "")


def _begin(folder: Path, begun: dict[str, Any]) -> None:
    path = folder / _BEGUN
    try:
        found = read_object(path) if path.exists() else None
    except Untrusted:
        found = {}
    if found is None and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty and holds no cache", mend="remove it")
    if found not in (None, begun):
        raise UserError(
            f"{folder}: a cache was begun there of another set, or by other decoders", mend="remove it"
        )
    write_json(path, begun)


def _make(shard_set: ShardSet, side: int, folder: Path, number: int) -> dict[str, Any]:
    """Make the planes of one shard, if they are not there, and return what cache.json says of them."""
    planes, table = folder / planes_name(number), folder / rows_name(number)
    # The table is written last: with it, a shard is made.
    if not table.exists():
        shards = shard_set.info.shards
        first = sum(shard.samples for shard in shards[:number])
        rows = np.zeros(shards[number].samples, ROW)
        reader = ShardReader(shard_set)
        with atomic_writer(planes) as file:
            offset = 0
            for place, sample in enumerate(range(first, first + len(rows))):
                content, size, full = _planes(reader, sample, side)
                rows[place] = (offset, *size, *full, zlib.crc32(content))
                file.write(content)
                offset += len(content)
        write_bytes(table, rows.tobytes())
    return {
        "bytes": planes.stat().st_size,
        "rows_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
    }


def _planes(reader: ShardReader, sample: int, side: int) -> Any:
    place, data = reader.image(sample)
    try:
        return planes_of(data, side)
    except BadImage as error:
        raise DamagedSample(place.key, f"shard {place.shard}", str(error)) from error


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Make a set's images a second time, shrunk and decoded to planar YUV 4:2:0, beside the set.\n"
        "Training reads them with --recipe.data.cache SIZE, several times as fast as JPEGs.",
        epilog="example:\n  python -m shards.cache data/shards/in1k --size 256",
    )
    parser.add_argument("set", type=str, help="folder of a shard set")
    parser.add_argument(
        "--size", default=256, type=int, help="short side that images are shrunk to (default: 256)"
    )
    parser.add_argument(
        "--workers", default=None, type=int, help="shards made at a time (default: one a core)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    shard_set = ShardSet.open(arguments.set)
    folder = make_cache(shard_set, arguments.size, workers=worker_count(arguments.workers))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{shard_set.num_samples:,} images of a short side of {arguments.size} at most, {size:,} bytes")
    print(f"cache: {folder}")


if __name__ == "__main__":
    run(main)
