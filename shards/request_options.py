"""The options of shards.write and shards.plan: what is asked for, which alone decides what a set holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from nml import digits, layout
from nml.cli import Parser
from nml.errors import UserError
from nml.levels import OWN_RATE, parse_ratio
from shards.layout import DEFAULT_SHARD_COUNT, DEFAULT_SHARD_SIZE, ShardLimits, parse_size
from shards.noise import NOISE_MODELS
from shards.request import WriteRequest
from shards.resize import QUALITY, Resize
from shards.sources import SOURCES


def add_request_options(parser: Parser) -> None:
    """Add the options that decide what a set holds, and where it goes."""
    parser.add_argument(
        "--source",
        default="digits",
        help=f"what to read, NAME or NAME:ARGUMENT; names: {', '.join(SOURCES.names())}",
    )
    parser.add_argument(
        "--noise",
        nargs="+",
        default=["0"],
        type=str,
        help="noise ratios from 0 to below 1; the first is stored in .cls/.txt; own: a matrix's own rate",
    )
    parser.add_argument(
        "--name",
        nargs="+",
        default=[],
        type=str,
        help="names of the levels above 0, one each (default: n20 for 0.2)",
    )
    parser.add_argument(
        "--out",
        default=None,
        type=str,
        help="folder of the set, or an fsspec URL such as s3://bucket/in1k (default: data/shards/SOURCE)",
    )
    parser.add_argument(
        "--model",
        default=None,
        type=str,
        help="noise model (default: symmetric, or caption-swap for captions); names: "
        + ", ".join(NOISE_MODELS.names()),
    )
    parser.add_argument(
        "--model-file", default=None, type=str, help="what the model reads: a matrix, features or labels"
    )
    parser.add_argument(
        "--encoder",
        default=None,
        type=str,
        help="compute the features that instance-dependent noise reads: timm:NAME or timm:NAME,weights=FILE",
    )
    parser.add_argument(
        "--seed", default=0, type=int, help="seed of the noise and of the order in the shards"
    )
    parser.add_argument(
        "--split",
        default="",
        help="split of a source that has several, told by the names of its files (default: train)",
    )
    parser.add_argument(
        "--image-root",
        default="",
        help="folder that images of a table, or of links in an image folder, may lie in, besides its own",
    )
    parser.add_argument(
        "--members",
        default="",
        help="members of a tar that make a sample: image=input.jpg,caption=outputs.txt or label=class.txt",
    )
    for column in ("image", "label", "caption", "key"):
        parser.add_argument(f"--{column}-column", default="", help=f"{column} column of a table")
    parser.add_argument(
        "--skip-bad",
        default=0,
        type=int,
        help="samples that may be left out as they cannot be taken (default: 0)",
    )
    parser.add_argument(
        "--decode-check", action="store_true", help="decode every image before anything is written"
    )
    parser.add_argument(
        "--resize",
        default=None,
        type=int,
        help="shrink images whose short side is longer than this many pixels, and store them as JPEG",
    )
    parser.add_argument(
        "--upright",
        action="store_true",
        help="with --resize: turn images as EXIF says, and store these as JPEG",
    )
    parser.add_argument("--quality", default=None, type=int, help=f"of these JPEGs (default: {QUALITY})")
    parser.add_argument("--encoding", default="", help="encoding of a csv or tsv (default: UTF-8)")
    parser.add_argument(
        "--max-shard-size", default=DEFAULT_SHARD_SIZE, help="bytes of a shard, such as 256MB or 1GiB"
    )
    parser.add_argument("--max-shard-count", default=DEFAULT_SHARD_COUNT, type=int, help="samples of a shard")
    parser.add_argument(
        "--chain", action="store_true", help="allow noise on top of a set that is noisy already"
    )
    parser.add_argument("--force", action="store_true", help="allow noise on a validation or test split")


def add_staging_option(parser: Parser) -> None:
    """Add the option that says where files are made that go to a URL."""
    parser.add_argument(
        "--staging",
        default=None,
        type=str,
        help="for a URL: local folder that shards are made in before they are uploaded "
        "(default: ~/.cache/noisy-model-learning/writing)",
    )


def add_spool_option(parser: Parser) -> None:
    """Add the option that says where images in tables are read from."""
    parser.add_argument(
        "--spool",
        action="store_true",
        help="keep images of tables on the disk of --out, instead of reading them again a shard",
    )


def add_workers_option(parser: Parser) -> None:
    """Add the option that says how many processes pack."""
    parser.add_argument(
        "--workers", default=None, type=int, help="processes (default: one a core); never changes the result"
    )


def request_of(arguments: Any) -> WriteRequest:
    """Return what parsed options ask for."""
    options = {
        "split": arguments.split,
        "encoding": arguments.encoding,
        "image_root": arguments.image_root,
        "members": arguments.members,
        **{f"{name}_column": arguments[f"{name}_column"] for name in ("image", "label", "caption", "key")},
    }
    return WriteRequest(
        source=arguments.source,
        ratios=tuple(parse_ratio(text) for text in arguments.noise if text != OWN_RATE),
        own_rate=OWN_RATE in arguments.noise,
        names=tuple(arguments.name),
        skip_bad=arguments.skip_bad,
        decode_check=arguments.decode_check,
        model=arguments.model,
        model_file=arguments.model_file,
        seed=arguments.seed,
        limits=ShardLimits(parse_size(arguments.max_shard_size), arguments.max_shard_count),
        options=options,
        chain=arguments.chain,
        force=arguments.force,
        encoder=arguments.encoder,
        resize=_resize(arguments.resize, arguments.quality, upright=arguments.upright),
    )


def _resize(side: int | None, quality: int | None, *, upright: bool) -> Resize | None:
    if side is None and quality is not None:
        raise UserError(f"--quality {quality}: images are copied as they are", mend="add --resize SIDE")
    if side is None and upright:
        raise UserError("--upright: images are copied as they are", mend="add --resize SIDE")
    return None if side is None else Resize(side, QUALITY if quality is None else quality, upright)


def out_of(arguments: Any, argv: list[str] | None) -> str:
    """Return where the set goes; say so where no source was named and the bundled data stand in."""
    if not any(argument.startswith("--source") for argument in (sys.argv[1:] if argv is None else argv)):
        print(digits.NOTICE)
    return arguments.out or f"{layout.SETS}/{default_name(arguments.source)}"


def default_name(source: str) -> str:
    """Return the name of a set when the user gave none: the last word of the source."""
    name, _, argument = source.partition(":")
    return Path(argument).name.split(".")[0] or name if argument else name


def worker_count(asked: int | None) -> int:
    """Return how many processes to use.

    Raises:
        UserError: If fewer than one was asked for.
    """
    if asked is None:
        return len(os.sched_getaffinity(0))
    if asked < 1:
        raise UserError(f"--workers {asked}: too few", possible="1 and above")
    return asked
