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
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from nml import cli
from plugins.gradient_head import GradientHead
from plugins.head import Labelled
from plugins.lp import LinearProbe
from plugins.mlp import MLP
from plugins.nmtune import NMTune
from plugins.trainer import Copy, fit_many

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)
CLASSES = 10


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


def batched(
    make: type[GradientHead], rates: tuple[float, ...], width: int, samples: int, epochs: int
) -> None:
    """Print one line: 5 fractions x 3 seeds x 3 learning rates in one pass and one after another."""
    train, test = clusters(samples, width, 0), clusters(10_000, width, 1)
    grid = list(itertools.product(FRACTIONS, SEEDS, rates))

    def head(rate: float) -> GradientHead:
        return make(epochs=epochs, lr=rate)

    copies = [
        Copy(head(rate), seed=seed, rows=torch.arange(round(part * samples))) for part, seed, rate in grid
    ]
    together = seconds(lambda: fit_many(copies, *train, num_classes=CLASSES))
    apart, worst = 0.0, 0.0
    for (part, seed, rate), copy in zip(grid, copies, strict=True):
        alone = head(rate)
        rows = round(part * samples)
        data = Labelled(train.features[:rows], train.labels[:rows])
        apart += seconds(lambda: alone.fit(*data, num_classes=CLASSES, seed=seed))  # noqa: B023 - called at once
        found = [accuracy(fitted.predict_logits(test.features), test.labels) for fitted in (alone, copy.head)]
        worst = max(worst, abs(found[0] - found[1]))
    print(
        f"{make.__name__:12} D {width:5}  45 copies {together:7.2f} s  one by one {apart:7.2f} s  "
        f"ratio 1/{apart / together:.1f}  largest accuracy difference {worst:.1e}",
        flush=True,
    )


def nmtune_against_mlp(width: int, steps: int, rounds: int) -> None:
    """Print the ratio of their fit times; the fits take turns so that other load falls on both."""
    train = clusters(64 * steps, width, 0)
    times: dict[type[GradientHead], list[float]] = {MLP: [], NMTune: []}
    for _ in range(rounds):
        for make, found in times.items():
            head = make(epochs=1)
            found.append(seconds(lambda: head.fit(*train, num_classes=CLASSES)))  # noqa: B023 - called at once
    medians = {make: statistics.median(found) / steps * 1e3 for make, found in times.items()}
    best = min(times[NMTune]) / min(times[MLP])
    print(
        f"D {width} batch 64: mlp {medians[MLP]:.1f} ms a step, nmtune {medians[NMTune]:.1f} ms, "
        f"ratio of medians {medians[NMTune] / medians[MLP]:.3f}, of best rounds {best:.3f}",
        flush=True,
    )


def peers(width: int, samples: int, epochs: int, clip_benchmark: str | None) -> None:
    """Print time and accuracy of lp, scikit-learn and CLIP_benchmark on the same features."""
    from sklearn.linear_model import LogisticRegression

    train, test = clusters(samples, width, 0), clusters(10_000, width, 1)

    def line(name: str, spent: float, logits: Tensor) -> None:
        print(f"{name:44} {spent:7.2f} s  accuracy {accuracy(logits, test.labels):.4f}", flush=True)

    head = LinearProbe(epochs=epochs, lr=0.01)
    line("lp", seconds(lambda: head.fit(*train, num_classes=CLASSES)), head.predict_logits(test.features))
    solver = LogisticRegression(max_iter=1000)
    spent = seconds(lambda: solver.fit(train.features.numpy(), train.labels.numpy()))
    line(
        "scikit-learn LogisticRegression",
        spent,
        torch.from_numpy(solver.decision_function(test.features.numpy())),
    )
    if clip_benchmark:
        sys.path.insert(0, clip_benchmark)
        from clip_benchmark.metrics.linear_probe import train as probe

        data = torch.utils.data.TensorDataset(*train)
        loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
        with contextlib.ExitStack() as stack:
            if not torch.cuda.is_available():
                stack.enter_context(mock.patch.object(torch.nn.Module, "cuda", lambda module: module))
                stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            begun = time.perf_counter()
            model = probe(loader, width, CLASSES, 0.0, 0.01, epochs, False, "cpu", 0)
            spent = time.perf_counter() - begun
        line(
            "CLIP_benchmark linear probe",
            spent,
            model(test.features.to(next(model.parameters()).device)).cpu(),
        )


def main() -> None:
    parser = cli.Parser("python benchmarks/heads.py", "Cost of heads, against each other and against peers.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--widths", type=list[int], default=[64, 512, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clip-benchmark", type=str | None, default=None)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    nmtune_against_mlp(2048, steps=8, rounds=options.rounds)
    for width in options.widths:
        batched(LinearProbe, (1e-3, 1e-2, 1e-1), width, options.samples, options.epochs)
    batched(NMTune, (3e-4, 1e-3, 3e-3), min(options.widths), options.samples, options.epochs)
    peers(512, 4 * options.samples, options.epochs, options.clip_benchmark)


if __name__ == "__main__":
    cli.run(main)
