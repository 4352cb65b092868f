"""``python -m shards.pack``: pack the shards of a plan, or a part of them."""

from __future__ import annotations

import time

from nml.cli import Parser, run
from nml.urls import without_secret
from shards.request_options import add_staging_option, add_workers_option, worker_count
from shards.writing import Part, pack_part

PROGRAM = "python -m shards.pack"

_EPILOG = """
examples:
  python -m shards.pack data/shards/in1k --part 3/8
  python -m shards.pack s3://bucket/in1k --part 3/8 --staging /local/scratch

The same command goes on with what is not packed yet. The parts' number may change from one call to the next.
"""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Pack a part of the shards of a set that python -m shards.plan has planned.\n"
        "Any number of processes, on any number of machines, may do so at once.",
        epilog=_EPILOG,
    )
    parser.add_argument("set", type=str, help="folder or URL that was given to shards.plan as --out")
    parser.add_argument("--part", type=str, default="1/1", help="which part: 1/8 to 8/8 (default: all)")
    add_workers_option(parser)
    add_staging_option(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    part = Part.parse(arguments.part)
    start = time.monotonic()
    packed = pack_part(
        arguments.set, part, workers=worker_count(arguments.workers), staging=arguments.staging
    )
    shown = without_secret(arguments.set)
    if packed is None:
        print(f"{shown}: the set is finished, nothing to do")
        return
    pace = packed.fresh / max(time.monotonic() - start, 1e-9)
    print(
        f"part {part.number}/{part.count}: {packed.shards:,} shards of {packed.samples:,} samples, "
        f"{packed.fresh:,} packed now ({pace:,.0f} samples/s)"
    )


if __name__ == "__main__":
    run(main)
