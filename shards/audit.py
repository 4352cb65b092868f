"""``python -m shards.audit``: what noise a published file of labels holds, against the clean labels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nml.cli import Parser, run
from nml.errors import UserError
from nml.levels import parse_ratio
from nml.set_file import SET_FILE
from nml.text_table import in_columns
from shards.catalogue import clean_population
from shards.noise import Integers, Population
from shards.noise.label_file import is_better_than_chance, read_labels
from shards.relabel import read_population
from shards.shardset import ShardSet
from shards.sources import SOURCES, open_source

PROGRAM = "python -m shards.audit"

# Classes up to which a matrix is counted, and up to which it is printed.
_MOST_CLASSES = 4096
_SHOWN = 20
# Cells, and classes, that are named where there are too many to show all.
_NAMED = 5
# A statement is refused where chance alone would go against it as much as the labels do this seldom.
_LEVEL = 0.01
_DRAWS = 999

_EPILOG = """
examples:
  python -m shards.audit CIFAR-10_human.pt:worse_label --against torchvision:CIFAR10 --claimed 0.4
  python -m shards.audit labels.csv --against data/shards/in1k
  python -m shards.audit data/shards/in1k --level n20-pair-flip     # a level
"""


class Audit(NamedTuple):
    """What a file of labels holds.

    Attributes:
        counts: Samples by clean (row) and given (column) class, int64 [K, K].
        other_order: Why the file's rows seem to be those of other samples; empty if they do not.
        even: How often flips to any other class with equal chance would be as uneven as these, from 0 to 1.
    """

    counts: Integers
    other_order: str
    even: float

    @property
    def samples(self) -> int:
        """N."""
        return int(self.counts.sum())

    @property
    def flipped(self) -> int:
        """Samples whose given class is not the clean one."""
        return self.samples - int(np.trace(self.counts))

    @property
    def realised(self) -> float:
        """Share of those."""
        return self.flipped / self.samples


def audit(text: str, population: Population) -> Audit:
    """Compare a file of labels with the clean ones.

    Raises:
        UserError: If the file cannot be read, or does not have one label for every sample.
    """
    _check_classes(population)
    labels = read_labels(text, population)
    other_order = ""
    if labels.clean is not None and (wrong := int((labels.clean != population.labels).sum())):
        other_order = f"{wrong:,} of the clean labels in the file are not the source's"
    elif not is_better_than_chance(labels.given, population):
        other_order = "the labels agree with the clean ones no better than in any order"
    return _audit(population, labels.given, other_order)


def audit_level(shard_set: ShardSet, noise: str) -> Audit:
    """Compare the labels of a set's level, named or by its ratio, with the clean ones.

    Raises:
        UserError: If there is no such level.
    """
    population = read_population(shard_set)
    _check_classes(population)
    return _audit(population, shard_set.index.column(shard_set.level(noise).column).to_numpy(), "")


def _check_classes(population: Population) -> None:
    classes = population.num_classes
    if not 2 <= classes <= _MOST_CLASSES or not len(population):
        raise UserError(
            f"the clean labels: {classes:,} classes, {len(population):,} samples",
            possible=f"2 to {_MOST_CLASSES:,}",
        )


def _audit(population: Population, given: Integers, other_order: str) -> Audit:
    classes = population.num_classes
    pairs = population.labels * classes + given
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)
    return Audit(counts, other_order, evenness(counts))


def evenness(counts: Integers) -> float:
    """Return how often flips of one rate, to any other class with equal chance, would be as uneven.

    The smaller of two chi-squared tests, times two: of how many each class loses, and of where those go. The
    distribution of the latter is drawn, as cells of few flips are the rule with many classes.
    """
    classes = len(counts)
    flips = counts.sum(axis=1) - np.diag(counts)
    draws = max(99, min(_DRAWS, 10**8 // classes**2))
    # The same numbers in each run.
    chance = np.random.default_rng(0)
    others = np.full(classes - 1, 1 / (classes - 1))
    found, drawn = 0.0, np.zeros(draws)
    for label in np.flatnonzero(flips):
        expected = flips[label] / (classes - 1)
        found += float(((np.delete(counts[label], label) - expected) ** 2).sum() / expected)
        drawn += ((chance.multinomial(flips[label], others, size=draws) - expected) ** 2).sum(
            axis=1
        ) / expected
    targets = float((1 + np.count_nonzero(drawn >= found - 1e-9)) / (1 + draws))
    return min(1.0, 2 * min(targets, _same_rate(flips, counts.sum(axis=1))))


def _same_rate(flips: Integers, sizes: Integers) -> float:
    """Return how often classes of one rate would differ as much in how many of them are flipped."""
    from scipy.stats import chi2_contingency

    table = np.stack([flips, sizes - flips])[:, sizes > 0]
    return float(chi2_contingency(table).pvalue) if table.sum(axis=1).all() else 1.0


def describe(found: Audit, names: tuple[str, ...], claimed: Fraction | None) -> list[str]:
    """Return the report's lines."""
    lines = [f"samples      {found.samples:,} of {len(names)} classes"]
    if found.other_order:
        lines.append(f"ORDER        {found.other_order}: what follows is of labels given to other samples")
    lines.append(f"realised     {found.realised:.4f}, {found.flipped:,} labels are not the clean ones")
    if claimed is not None:
        lines += _claim(found, claimed)
    else:
        lines.append("drawn from   cannot be told without the rate that was claimed: --claimed 0.4")
    even = "not ruled out" if found.even >= _LEVEL else "no"
    lines.append(
        f"symmetric    {even}: p {found.even:.3g} (chi-squared, of equal rates and targets, level {_LEVEL})"
        if found.flipped
        else "symmetric    no label is flipped"
    )
    return [*lines, "", *_by_class(found, names), "", *_matrix(found, names)]


def _claim(found: Audit, claimed: Fraction) -> list[str]:
    """Hold the rate to the claimed one: as flips to other classes, or as draws that may hit the clean one."""
    classes = len(found.counts)
    rates = {
        "the other classes": float(claimed),
        "all classes, the clean one included": float(claimed) * (classes - 1) / classes,
    }
    near = [name for name, rate in rates.items() if _is_near(found, rate)]
    line = f"claimed      {float(claimed):g}"
    if not near:
        expected = " or ".join(f"{rate:.4f}" for rate in rates.values())
        return [f"{line}, WRONG: that would realise {expected} (two-sided test, level {_LEVEL})"]
    return [f"{line}, which is what is realised", f"drawn from   {' or '.join(near)}"]


def _is_near(found: Audit, rate: float) -> bool:
    """Whether as many flips as these would come of a rate; exact counts are nearer than drawn ones."""
    from scipy.stats import binomtest

    return float(binomtest(found.flipped, found.samples, rate).pvalue) >= _LEVEL


def _by_class(found: Audit, names: tuple[str, ...]) -> list[str]:
    sizes = found.counts.sum(axis=1)
    agreement = np.diag(found.counts) / np.maximum(sizes, 1)
    order = np.argsort(agreement, kind="stable")
    order = order[sizes[order] > 0]
    title = "agreement by class, the lowest first"
    if len(order) > _SHOWN:
        title += f" ({_NAMED} lowest and {_NAMED} highest of {len(order)})"
        order = np.concatenate([order[:_NAMED], order[-_NAMED:]])
    rows = [[names[label], f"{agreement[label]:.4f}", f"{sizes[label]:,}"] for label in order]
    return [
        title,
        *("  " + line for line in in_columns([["class", "agrees", "samples"], *rows], text_columns=1)),
    ]


def _matrix(found: Audit, names: tuple[str, ...]) -> list[str]:
    shares: npt.NDArray[np.float64] = found.counts / np.maximum(found.counts.sum(axis=1, keepdims=True), 1)
    if len(names) <= _SHOWN:
        head = ["", *(str(label) for label in range(len(names)))]
        rows = [
            [f"{label} {name}", *(f"{share:.3f}" for share in row)]
            for label, (name, row) in enumerate(zip(names, shares, strict=True))
        ]
        return [
            "transition matrix: row is clean, column is given",
            *("  " + line for line in in_columns([head, *rows], text_columns=1)),
        ]
    off = shares * (1 - np.eye(len(names)))
    largest = np.argsort(off, axis=None, kind="stable")[::-1][:_NAMED]
    cells = [np.unravel_index(place, off.shape) for place in largest.tolist()]
    rows = [[names[clean], "is given as", names[given], f"{off[clean, given]:.4f}"] for clean, given in cells]
    return [
        f"transition matrix: its {_NAMED} largest shares off the diagonal",
        *("  " + line for line in in_columns(rows, text_columns=3)),
    ]


def open_population(against: str, *, shown: str = "", **options: Any) -> Population:
    """Return the clean labels of a source, or of a shard set in a folder; ``shown`` is how it was named.

    Raises:
        UserError: If it cannot be read, or has captions.
    """
    if (Path(against) / SET_FILE).is_file():
        shard_set = ShardSet.open(against)
        if shard_set.kind == "class":
            return read_population(shard_set)
    else:
        source = open_source(against, **options)
        if source.kind == "class":
            return clean_population(source)
    raise UserError(f"{shown or against}: has captions", possible="a source or a set with classes")


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Tell of a published file of noisy labels what it really holds: rate, transition matrix, and\n"
        "whether it is in the source's order.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "file", type=str, help="the labels: .csv, .npy, .json or FILE.pt:NAME; with --level, a set's folder"
    )
    parser.add_argument(
        "--level", type=str, default=None, help="level of the set in FILE, by its name or ratio"
    )
    parser.add_argument(
        "--against",
        type=str,
        default=None,
        help=f"the clean labels: folder of a set, or NAME:ARGUMENT; names: {', '.join(SOURCES.names())}",
    )
    parser.add_argument(
        "--claimed", type=str, default=None, help="the noise ratio that the file is said to have"
    )
    parser.add_argument("--split", default="", help="split of the source, as in shards.write")
    for column in ("image", "label", "key"):
        parser.add_argument(f"--{column}-column", default="", help=f"{column} column of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if the labels seem to be those of other samples."""
    arguments = build_parser().parse_args(argv)
    claimed = None if arguments.claimed is None else parse_ratio(arguments.claimed, where="--claimed")
    against = arguments.file if arguments.level is not None else arguments.against
    if None not in (arguments.level, arguments.against):
        raise UserError(
            "--level, --against: both named",
            mend="leave out --against: a level is held to the clean labels of its own set",
        )
    if against is None:
        raise UserError(
            "--against, --level: one of them is needed", mend="name the clean labels: --against SOURCE"
        )
    if arguments.level is not None and not (Path(against) / SET_FILE).is_file():
        raise UserError(f"--level {arguments.level}: {against} is no folder of a set", mend="name one")
    population = open_population(
        against,
        shown=against if arguments.level is not None else f"--against {against}",
        split=arguments.split,
        **{f"{name}_column": arguments[f"{name}_column"] for name in ("image", "label", "key")},
    )
    if arguments.level is not None:
        found = audit_level(ShardSet.open(against), arguments.level)
    else:
        try:
            found = audit(arguments.file, population)
        except UserError as error:
            # Elsewhere an option names the file.
            what = error.what.removeprefix("--model-file ")
            raise UserError(what, possible=error.possible, mend=error.mend) from error
    names = population.classes or tuple(map(str, range(population.num_classes)))
    print("\n".join(describe(found, names, claimed)))
    return int(bool(found.other_order))


if __name__ == "__main__":
    run(main)
