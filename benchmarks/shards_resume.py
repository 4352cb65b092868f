"""Resuming in a large set: from a process that knows nothing to the next batch, located and labelled.

    python benchmarks/shards_resume.py [--samples 15000000]

Makes an index of that many samples, and measures a process that opens it, loads a state of mid-epoch
and names the next batch of 4096.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def make_large_set(folder: Path, samples: int) -> None:
    """Make all of a set that resuming looks at; its shards are as long as real ones, but hollow."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from nml.files import write_json
    from shards.manifest import index_digests, index_schema, write_index
    from shards.set_info import SetInfo, Shard

    per_shard, image_bytes = 10_000, 108_000
    schema = index_schema("class", ["label"], "f" * 64)
    generator = np.random.default_rng(0)
    shards = []

    def tables() -> Iterator[pa.Table]:
        for number, start in enumerate(range(0, samples, per_shard)):
            rows = np.arange(start, min(start + per_shard, samples))
            shards.append(Shard(f"shard-{number:06d}.tar", len(rows), len(rows) * image_bytes, ""))
            with (folder / shards[-1].name).open("wb") as file:
                file.truncate(shards[-1].bytes)
            columns = {
                "key": pc.binary_join_element_wise("n01440764_", pa.array(rows).cast(pa.string()), ""),
                "shard": np.full(len(rows), number),
                "image_extension": pa.repeat("jpg", len(rows)),
                "image_offset": (rows - start) * image_bytes,
                "image_size": np.full(len(rows), image_bytes - 2048),
                "sha256": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(32), len(rows), [None, pa.py_buffer(generator.bytes(32 * len(rows)))]
                ),
                "label": generator.integers(0, 1000, len(rows)),
            }
            yield pa.table(columns).cast(schema)

    write_index(folder / "index.arrow", schema, tables())
    info = SetInfo(
        kind="class",
        source="made up",
        num_samples=samples,
        classes=tuple(map(str, range(1000))),
        seed=0,
        fingerprint="f" * 64,
        manifest_sha256="",
        index_sha256="",
        levels={},
        shards=tuple(shards),
        index_digests=index_digests(folder / "index.arrow"),
    )
    write_json(folder / "set.json", info.as_json())


def resume_once(folder: Path) -> None:
    """Print what a fresh process takes to open the set, and to load a state and name the next batch."""
    import psutil

    from shards.dataset import ShardDataset
    from shards.sampler import ElasticBatchSampler
    from shards.shardset import ShardSet

    def megabytes() -> float:
        return psutil.Process().memory_info().rss / 1e6

    before, start = megabytes(), time.perf_counter()
    shard_set = ShardSet.open(folder)
    dataset = ShardDataset(shard_set)
    opened, opened_at = megabytes(), time.perf_counter()
    sampler = ElasticBatchSampler(shard_set, global_batch=4096)
    sampler.load_state_dict(sampler.state_dict(epoch=7, step=sampler.steps_per_epoch // 2))
    batch = next(iter(sampler))
    labels = [shard_set.index.supervision(ref.index, dataset.level.column) for ref in batch]
    places = [shard_set.index.place(ref.index) for ref in batch]
    named, named_at = megabytes(), time.perf_counter()
    print(f"opened: {opened_at - start:.2f} s, {opened - before:.0f} MB more")
    print(f"state loaded, next batch of {len(places)} located with its labels: {named_at - opened_at:.2f} s")
    print(
        f"memory then: {named - before:.0f} MB more, most of it the mapped index ({len(set(labels))} classes)"
    )


def resume(samples: int, scratch: Path) -> None:
    """Make a set and measure a process of its own, which holds nothing yet."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        make_large_set(Path(folder), samples)
        size = (Path(folder) / "index.arrow").stat().st_size
        print(f"{samples:,} samples, index of {size / 1e9:.2f} GB")
        subprocess.run([sys.executable, __file__, "--once", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=15_000_000)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        resume_once(arguments.once)
    else:
        resume(arguments.samples, arguments.scratch)


if __name__ == "__main__":
    main()
