"""Cost of heads: many copies in one pass against one after another, nmtune against mlp, lp against peers.

    python benchmarks/heads.py [--clip-benchmark FOLDER]

The data are overlapping Gaussian classes. FOLDER is where ``pip install --no-deps --target FOLDER
clip_benchmark`` put CLIP_benchmark; its linear probe moves everything to CUDA, so where there is none
``cuda()`` is made to do nothing for it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor, nn

from nml import cli
from plugins.gradient_head import GradientHead
from plugins.head import Head, Labelled
from plugins.logreg import LogisticRegression
from plugins.lp import LinearProbe
from plugins.mlp import MLP
from plugins.nmtune import NMTune
from plugins.trainer import Copy, fit_many

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)
CLASSES = 10
BATCH = 64


def clusters(samples: int, width: int, seed: int) -> Labelled:
    """Return Gaussian classes that overlap enough for accuracies below 1."""
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0)) * 2.2 / width**0.5
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return Labelled(centres[labels] + torch.randn(samples, width, generator=generator), labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def matmul_rate() -> float:
    """Return the GFLOP/s of the products that a wide head is made of, [64, 2048] by [2048, 2048]."""
    x, weight = torch.randn(BATCH, 2048), torch.randn(2048, 2048)
    best = min(seconds(lambda: x @ weight) for _ in range(20))
    return 2 * BATCH * 2048 * 2048 / best / 1e9


def product_flops(head: GradientHead, width: int, samples: int) -> float:
    """Return the floating-point operations of the linear layers in one fit: forward, and both gradients."""
    linear = [part for part in head.build(width, CLASSES).modules() if isinstance(part, nn.Linear)]
    weights = [part.weight.numel() for part in linear]
    steps = head.schedule().steps(samples)
    # The first layer needs no gradient of its input.
    return 2 * head.schedule().batch(samples) * (3 * sum(weights) - weights[0]) * steps


def batched(
    make: type[GradientHead],
    rates: Sequence[float],
    width: int,
    samples: int,
    epochs: int,
    peak: float,
    tested: int = 10_000,
) -> None:
    """Print one line: 5 fractions x 3 seeds x 3 learning rates in one pass and one after another."""
    train, test = clusters(samples, width, 0), clusters(tested, width, 1)
    grid = list(itertools.product(FRACTIONS, SEEDS, rates))

    def head(rate: float) -> GradientHead:
        return make(epochs=epochs, lr=rate)

    sizes = [round(part * samples) for part, _, _ in grid]
    copies = [
        Copy(head(rate), seed=seed, rows=torch.arange(size))
        for size, (_, seed, rate) in zip(sizes, grid, strict=True)
    ]
    together = seconds(lambda: fit_many(copies, *train, num_classes=CLASSES))
    apart, worst = 0.0, 0.0
    for size, copy in zip(sizes, copies, strict=True):
        alone = head(copy.head.schedule().lr)
        data = Labelled(train.features[:size], train.labels[:size])
        apart += seconds(lambda: alone.fit(*data, num_classes=CLASSES, seed=copy.seed))  # noqa: B023 - called at once
        found = [accuracy(fitted.predict_logits(test.features), test.labels) for fitted in (alone, copy.head)]
        worst = max(worst, abs(found[0] - found[1]))
    # What the products alone would take at the rate that one copy of a wide head reaches.
    products = sum(product_flops(head(rates[0]), width, size) for size in sizes) / peak / 1e9
    print(
        f"{make.__name__:12} D {width:5}  45 copies {together:7.2f} s  one by one {apart:7.2f} s  "
        f"ratio 1/{apart / together:.1f}  possible 1/{apart / products:.1f}  "
        f"largest difference in accuracy on {tested} samples {worst:.1e}",
        flush=True,
    )


def nmtune_against_mlp(width: int, steps: int, rounds: int) -> None:
    """Print the ratio of their fit times; the fits take turns so that other load falls on both."""
    train = clusters(BATCH * steps, width, 0)
    times: dict[type[GradientHead], list[float]] = {MLP: [], NMTune: []}
    for _ in range(rounds):
        for make, found in times.items():
            head = make(epochs=1)
            found.append(seconds(lambda: head.fit(*train, num_classes=CLASSES)))  # noqa: B023 - called at once
    medians = {make: statistics.median(found) / steps * 1e3 for make, found in times.items()}
    best = min(times[NMTune]) / min(times[MLP])
    print(
        f"D {width} batch {BATCH}: mlp {medians[MLP]:.1f} ms a step, nmtune {medians[NMTune]:.1f} ms, "
        f"ratio of medians {medians[NMTune] / medians[MLP]:.3f}, of best rounds {best:.3f}",
        flush=True,
    )


def peers(width: int, samples: int, epochs: int, clip_benchmark: str | None) -> None:
    """Print time and accuracy of lp, logreg, scikit-learn and CLIP_benchmark on the same features."""
    from sklearn.linear_model import LogisticRegression as ScikitLearn

    train, test = clusters(samples, width, 0), clusters(10_000, width, 1)

    def line(name: str, spent: float, logits: Tensor) -> None:
        print(f"{name:44} {spent:7.2f} s  accuracy {accuracy(logits, test.labels):.4f}", flush=True)

    print(f"{samples} samples, D {width}, {epochs} epochs of lr 0.01 where there are epochs:")
    heads: dict[str, Head] = {"lp": LinearProbe(epochs=epochs, lr=0.01), "logreg": LogisticRegression()}
    for name, head in heads.items():
        spent = seconds(lambda: head.fit(*train, num_classes=CLASSES))  # noqa: B023 - called at once
        line(name, spent, head.predict_logits(test.features))
    solver = ScikitLearn(max_iter=1000)
    spent = seconds(lambda: solver.fit(train.features.numpy(), train.labels.numpy()))
    scores = torch.from_numpy(solver.decision_function(test.features.numpy()))
    line("scikit-learn LogisticRegression", spent, scores)
    if clip_benchmark:
        line(
            "CLIP_benchmark linear probe", *clip_benchmark_probe(clip_benchmark, train, test.features, epochs)
        )


def clip_benchmark_probe(folder: str, data: Labelled, test: Tensor, epochs: int) -> tuple[float, Tensor]:
    """Return the seconds of CLIP_benchmark's linear probe, and its scores of the test features."""
    sys.path.insert(0, folder)
    from clip_benchmark.metrics.linear_probe import train

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=BATCH, shuffle=True
    )
    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch.object(torch.nn.Module, "cuda", lambda module: module))
            stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        begun = time.perf_counter()
        model = train(loader, data.features.shape[1], CLASSES, 0.0, 0.01, epochs, False, "cpu", 0)
        spent = time.perf_counter() - begun
    return spent, model(test.to(next(model.parameters()).device)).detach().cpu()


def main() -> None:
    parser = cli.Parser("python benchmarks/heads.py", "Cost of heads, against each other and against peers.")
    parser.add_argument("--samples", type=int, default=2000, help="training samples of the copies")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=11, help="fits of mlp and of nmtune, in turn")
    parser.add_argument("--clip-benchmark", type=str | None, default=None, help="folder of CLIP_benchmark")
    options = parser.parse_args()
    peak = matmul_rate()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, products at {peak:.0f} GFLOP/s")
    nmtune_against_mlp(2048, steps=8, rounds=options.rounds)
    peers(512, 4 * options.samples, options.epochs, options.clip_benchmark)
    for width in (64, 512, 2048):
        batched(LinearProbe, (1e-3, 1e-2, 1e-1), width, options.samples, options.epochs, peak)
    for make in (MLP, NMTune):
        for width in (64, 128, 256, 512, 2048):
            # Wide ones are slow, and their ratio hardly depends on the number of steps. The smallest fraction
            # still fills a batch. Scoring them takes longer than training them, and is not timed.
            shrink = max(1, width // 128)
            samples = max(round(BATCH / min(FRACTIONS)), options.samples // shrink)
            batched(
                make,
                (3e-4, 1e-3, 3e-3),
                width,
                samples,
                max(1, options.epochs // shrink),
                peak,
                10_000 // shrink,
            )


if __name__ == "__main__":
    cli.run(main)
