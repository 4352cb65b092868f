"""Time and memory of NMTune's terms on wide features, beside the same terms by their definition.

    python benchmarks/regularisers.py

One step is the value and the gradient of L_MSE + L_COV + L_SVD of one batch of 64, on one thread, in
processor time. Memory is what the process takes on top of the batch, its largest resident set; each line is a
process of its own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional

from plugins.losses import consistency, covariance, dominant_share, products

BATCH = 64
WIDTHS = (2048, 4096, 8192, 16384)
# Wider, its matrices of D x D float64 numbers and their gradients take tens of gigabytes.
WIDEST_BY_DEFINITION = 4096


def in_one(features: Tensor, transformed: Tensor) -> Tensor:
    of = products(transformed, features, spectrum=True)
    return consistency(of) + covariance(of) + dominant_share(of)


def by_definition(features: Tensor, transformed: Tensor) -> Tensor:
    f, z = features.double(), transformed.double()
    apart = (functional.normalize(f, dim=1) - functional.normalize(z, dim=1)).square().sum(dim=1).mean()
    centred = z - z.mean(dim=0)
    matrix = centred.T @ centred / (len(z) - 1)
    correlated = (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
    sigma = torch.linalg.svdvals(z)
    return apart + correlated - sigma[0] / sigma.sum()


WAYS = {"in one": in_one, "by definition": by_definition}


def measure(way: str, width: int) -> None:
    """Print the milliseconds of a step, the megabytes and the value."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, width, generator=generator)
    transformed = (features + torch.randn(BATCH, width, generator=generator)).requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(7):
        begun = time.process_time()
        value = WAYS[way](features, transformed)
        torch.autograd.grad(value, transformed)
        taken.append(time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{1000 * statistics.median(taken):.1f} {peak / 1024:.0f} {float(value):.10f}")


def main() -> None:
    print("| D | terms | ms a step | MB | value |\n|---|---|---|---|---|")
    for width in WIDTHS:
        for way in WAYS:
            if way == "in one" or width <= WIDEST_BY_DEFINITION:
                words = [sys.executable, __file__, way, str(width)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                print(f"| {width:,} | {way} | {' | '.join(done.stdout.split())} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
