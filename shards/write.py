"""``python -m shards.write``: write a shard set with one or more noise levels."""

from __future__ import annotations

import time

from nml.cli import Parser, run
from nml.urls import without_secret
from shards.request_options import (
    add_request_options,
    add_spool_option,
    add_staging_option,
    add_workers_option,
    out_of,
    request_of,
    worker_count,
)
from shards.sources import Defect, open_source
from shards.writing import Written, write_set

PROGRAM = "python -m shards.write"

_EPILOG = """
examples:
  python -m shards.write                                        the bundled digits, clean
  python -m shards.write --source digits --noise 0 0.2 --out data/shards/digits
  python -m shards.write --source imagefolder:imagenet/train --noise 0.05 0.1 0.2 0.3 --out data/shards/in1k
  python -m shards.write --source parquet:cc3m.parquet --caption-column text --noise 0.1 --out data/cc3m

The same command continues an interrupted write, and finds a finished one done.
"""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Write images and their labels or captions as tar shards, with exactly as much noise as asked.\n"
        "All levels share one set: images are stored once, and every level is a column of its own.",
        epilog=_EPILOG,
    )
    add_request_options(parser)
    add_staging_option(parser)
    add_spool_option(parser)
    add_workers_option(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    request = request_of(arguments)
    out = out_of(arguments, argv)
    start = time.monotonic()
    defects: list[Defect] = []
    written = write_set(
        out,
        request,
        lambda: open_source(request.source, defects=defects, **request.options),
        workers=worker_count(arguments.workers),
        staging=arguments.staging,
        spool=arguments.spool,
        defects=defects,
    )
    report(out, written, time.monotonic() - start)


def report(out: str, written: Written, seconds: float) -> None:
    """Print what was written, level by level, and where it went."""
    info = written.info
    for level in info.all_levels().values():
        if level.model != "clean":
            print(level.describe())
    for form, count in info.forms.items():
        print(f"{count:,} of {info.num_samples:,} images came {form}")
    if made := info.resized:
        print(
            f"{made['images']:,} of {info.num_samples:,} images shrunk to a short side of "
            f"{made['short_side']}{' or turned' if made.get('upright') else ''}, as JPEG of quality "
            f"{made['quality']} ({made['encoder']})"
        )
    total = sum(shard.bytes for shard in info.shards)
    print(
        f"{info.num_samples:,} samples in {len(info.shards)} shards, {_bytes(total)}{_pace(written, seconds)}"
    )
    print(f"set: {without_secret(out)}")


def _pace(written: Written, seconds: float) -> str:
    if not written.fresh:
        return "" if written.resumed else "; the set was there already, nothing to do"
    kept = f", {written.resumed:,} kept from an interrupted write" if written.resumed else ""
    pace = written.fresh / max(seconds, 1e-9)
    return f"; {written.fresh:,} written in {seconds:.1f} s ({pace:,.0f} samples/s){kept}"


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


if __name__ == "__main__":
    run(main)
