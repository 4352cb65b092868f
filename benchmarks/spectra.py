"""Time and memory of the spectrum of a large feature matrix, in one pass.

    python benchmarks/spectra.py [--rows N] [--dim D]

The rows are made chunk by chunk and never held together; only the pass itself is timed. Beside it stands what
its products alone cost at the rate that the machine reaches on one large product in float64, and in float32.
"""

from __future__ import annotations

import resource
import time

import numpy as np

from nml import cli
from plugins.spectra import Spectrum, lsvr, sve

CHUNK = 4096


def matmul_rate(dim: int, dtype: type) -> float:
    """Return the GFLOP/s of a product [D, CHUNK] by [CHUNK, D]."""
    rows = np.ones((CHUNK, dim), dtype)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        rows.T @ rows
        times.append(time.perf_counter() - begun)
    return 2 * CHUNK * dim * dim / min(times) / 1e9


def main() -> None:
    parser = cli.Parser("python benchmarks/spectra.py", "Time and memory of a spectrum in one pass.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2048)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((2 * CHUNK, options.dim), dtype=np.float32)
    spectrum = Spectrum(options.dim)
    adding = 0.0
    for start in range(0, options.rows, CHUNK):
        # Another window of the pool, at another scale: no two chunks are alike.
        offset = int(generator.integers(0, CHUNK))
        chunk = pool[offset : offset + min(CHUNK, options.rows - start)] * np.float32(generator.uniform(1, 2))
        begun = time.perf_counter()
        spectrum.add(chunk)
        adding += time.perf_counter() - begun
    begun = time.perf_counter()
    values = spectrum.singular_values()
    finding = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{options.rows} x {options.dim} float32: {adding:.1f} s to add up, {finding:.1f} s for the values, "
        f"peak memory of the process {memory:.2f} GB; SVE {sve(values):.4f}, LSVR {lsvr(values):.4f}"
    )
    # A symmetric product needs half of the operations.
    operations = options.rows * options.dim**2 / 1e9
    for dtype in (np.float64, np.float32):
        rate = matmul_rate(options.dim, dtype)
        print(f"its products at {rate:.0f} GFLOP/s, as seen in {dtype.__name__}: {operations / rate:.1f} s")


if __name__ == "__main__":
    cli.run(main)
