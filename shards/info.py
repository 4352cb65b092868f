"""``python -m shards.info``: what a set holds, level by level, and a picture of its noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import atomic_writer
from nml.untrusted import MOST_BYTES, MOST_CONTAINERS, Untrusted, check_object, read_json
from shards.set_info import STATS_FILE
from shards.shardset import ShardSet

PROGRAM = "python -m shards.info"
_NAMED_CLASSES = 24
_PICTURES = (".png", ".svg", ".pdf")


def describe(shard_set: ShardSet, level: str | None = None) -> str:
    """Return the lines that ``shards.info`` prints; of one level alone where it is named."""
    info = shard_set.info
    sizes = [shard.bytes for shard in info.shards]
    lines = [
        f"set          {shard_set.path}",
        f"source       {info.source}",
        f"samples      {info.num_samples:,} in {len(info.shards)} shards, {sum(sizes):,} bytes",
        f"supervision  {info.kind}" + (f", {len(info.classes)} classes" if info.classes else ""),
        f"fingerprint  {info.fingerprint}",
        f"seed         {info.seed}",
        f"stored first {info.primary} (what .cls/.txt members hold)",
    ]
    if info.is_sidecar:
        lines.append(
            f"tars         at {info.shards[0].url.rpartition('/')[0]}, and nothing of the set beside them"
        )
    if info.held_out:
        lines.append("split        validation or test: noise needs --force")
    if info.parent:
        lines.append(f"made from    set {info.parent['fingerprint']} at level {info.parent['level']}")
    lines.append("levels")
    lines += [f"  {each.describe()}" for name, each in info.all_levels().items() if level in (None, name)]
    return "\n".join(lines)


def read_stats(shard_set: ShardSet) -> dict[str, Any]:
    """Return the content of stats.json."""
    # A thousand classes have up to a million cells a level.
    path = shard_set.storage.local(STATS_FILE)
    stats = read_json(path, most=8 * MOST_BYTES, containers=8 * MOST_CONTAINERS)
    try:
        for level in check_object(stats, levels=dict)["levels"].values():
            check_object(level, transitions=list | None)
    except Untrusted as error:
        raise UserError(
            f"{shard_set.path}/{STATS_FILE}: {error}", mend="restore it from where the set was written"
        ) from error
    return check_object(stats)


def transition_matrix(stats: dict[str, Any], level: str) -> npt.NDArray[np.float64]:
    """Return a level's realised transition matrix, float64 [K, K]: row is clean, column is given.

    Raises:
        UserError: If the statistics hold none: captions, or more classes than are counted.
    """
    cells = stats["levels"].get(level, {}).get("transitions")
    if cells is None:
        raise UserError(
            f"level {level}: has no transition matrix", possible=", ".join(stats["levels"]) or "none"
        )
    try:
        counts = np.zeros((len(stats["classes"]),) * 2)
        for clean, given, count in cells:
            counts[clean, given] = count
    except (IndexError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{STATS_FILE}: transitions of {level} are damaged: {error}") from error
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def plot(shard_set: ShardSet, path: Path, level: str | None = None) -> None:
    """Draw the realised transition matrix of every noisy level, or of the one named, into one picture.

    Raises:
        UserError: If the set has no noisy level of classes, or the name is that of no picture.
    """
    if path.suffix not in _PICTURES:
        raise UserError(f"--plot {path}", possible=f"a file with {', '.join(_PICTURES)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stats = read_stats(shard_set)
    names = [
        name for name, each in stats["levels"].items() if "transitions" in each and level in (None, name)
    ]
    if not names:
        raise UserError(
            f"--plot: {shard_set.path} has no noisy level of classes", mend="add one with shards.relabel"
        )
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4.2 * len(names), 4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        matrix = transition_matrix(stats, name)
        noise = matrix * (1 - np.eye(len(matrix)))
        # The diagonal would swallow the scale; what it holds is the title's number.
        picture = axis.imshow(np.where(np.eye(len(matrix)) > 0, np.nan, noise), cmap="viridis", vmin=0)
        shown = shard_set.levels[name]
        axis.set_title(f"{name}: {shown.realised:.4g} flipped ({shown.model})", fontsize=9)
        axis.set_xlabel("given label")
        axis.set_ylabel("clean label")
        if len(matrix) <= _NAMED_CLASSES:
            axis.set_xticks(range(len(matrix)), stats["classes"], rotation=90, fontsize=7)
            axis.set_yticks(range(len(matrix)), stats["classes"], fontsize=7)
        figure.colorbar(picture, ax=axis, shrink=0.8)
    with atomic_writer(path) as file:
        figure.savefig(file, dpi=130, format=path.suffix.removeprefix("."))
    pyplot.close(figure)


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Show what a shard set holds: samples, classes, and asked and realised noise of every level.",
        epilog="example:\n  python -m shards.info data/shards/digits --plot",
    )
    parser.add_argument("set", type=str, help="folder or URL of the set")
    parser.add_argument("--level", default=None, type=str, help="one level alone, by its name or ratio")
    parser.add_argument(
        "--plot",
        nargs="?",
        const="",
        default=None,
        type=str,
        help="draw the transition matrices (default: NAME-noise.png)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    shard_set = ShardSet.open(arguments.set)
    level = None if arguments.level is None else shard_set.level(arguments.level).name
    print(describe(shard_set, level))
    if arguments.plot is not None:
        path = Path(arguments.plot or f"{Path(arguments.set).name}-noise.png")
        plot(shard_set, path, level)
        print(f"picture: {path}")


if __name__ == "__main__":
    run(main)
