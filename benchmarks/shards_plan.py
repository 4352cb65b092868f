"""Plan noise at YFCC scale: seconds and peak memory for N labels and N captions.

    python benchmarks/shards_plan.py [--samples 15000000]

Each case runs in a process of its own. Counted: hashing every key (and caption), four levels, the
write order and the shard boundaries. Not counted: making the keys and captions up.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pyarrow as pa

RATIOS = [Fraction(text) for text in ("0.05", "0.1", "0.2", "0.3")]
CLASSES = 1000
BATCH = 65_536


def strings(prefix: str, count: int) -> pa.ChunkedArray:
    """Return ``count`` distinct strings, batch by batch as a catalogue holds them."""

    def chunks() -> Iterator[pa.Array]:
        for start in range(0, count, BATCH):
            yield pa.array([f"{prefix}{number:09d}" for number in range(start, min(start + BATCH, count))])

    return pa.chunked_array(list(chunks()))


def plan(kind: str, samples: int) -> None:
    from shards.arrow_columns import hash_column
    from shards.ladder import apply_flips, load_model, plan_ladder
    from shards.layout import ShardLimits, cut, write_order
    from shards.noise import Population

    keys = strings("n01440764_", samples)
    captions = (
        strings("a photograph of something rather long, number ", samples) if kind == "caption" else None
    )
    # A power law: the largest class has a thousand times the smallest one's samples.
    weights = 1 / np.arange(1, CLASSES + 1)
    labels = np.random.default_rng(0).choice(CLASSES, samples, p=weights / weights.sum())
    start, start_cpu = time.perf_counter(), time.process_time()
    hashes = hash_column(keys)
    population = Population(
        kind="caption" if captions is not None else "class",
        hashes=hashes,
        labels=labels if captions is None else np.empty(0, np.int64),
        num_classes=CLASSES if captions is None else 0,
        texts=np.empty(0, np.uint64) if captions is None else hash_column(captions),
    )
    name, model = load_model(None, population.kind, None)
    levels = plan_ladder(model, name, population, RATIOS, 0)
    clean = labels if captions is None else np.arange(samples)
    for level in levels:
        apply_flips(clean, level.flips)
    order = write_order(hashes, 0)
    cut(np.full(samples, 20_000)[order], ShardLimits(256_000_000, 10_000))
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    collisions = samples - len(np.unique(hashes))
    counts = ", ".join(f"{level.level.flipped:,}" for level in levels)
    print(
        f"{kind}: {samples:,} samples planned in {seconds:.1f} s ({cpu:.1f} s of CPU), peak {memory:.2f} GB",
        flush=True,
    )
    print(f"  flipped {counts}; {collisions} collisions of key hashes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=15_000_000)
    parser.add_argument("--kind", choices=("class", "caption"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        plan(arguments.kind, arguments.samples)
        return
    for samples in (arguments.samples // 10, arguments.samples):
        for kind in ("class", "caption"):
            subprocess.run([sys.executable, __file__, "--samples", str(samples), "--kind", kind], check=True)


if __name__ == "__main__":
    main()
