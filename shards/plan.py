"""``python -m shards.plan``: plan a shard set, for any number of processes to pack."""

from __future__ import annotations

from nml.cli import Parser, run
from nml.front import spelled
from nml.urls import without_secret
from shards.request_options import (
    add_request_options,
    add_spool_option,
    add_staging_option,
    out_of,
    request_of,
)
from shards.sources import Defect, open_source
from shards.write import report
from shards.writing import Encoding, Written, plan_set

PROGRAM = "python -m shards.plan"

_EPILOG = """
examples:
  python -m shards.plan --source imagefolder:imagenet/train --noise 0.05 0.2 --out data/shards/in1k
  python -m shards.pack data/shards/in1k --part 1/8        and so on to 8/8, anywhere, in any order
  python -m shards.finish data/shards/in1k

The three give the bytes of python -m shards.write with the same options.
"""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Plan a shard set: read the source once, and decide what every sample gets and where it goes.\n"
        "The plan lies in the set's own place, for python -m shards.pack.",
        epilog=_EPILOG,
    )
    add_request_options(parser)
    add_staging_option(parser)
    add_spool_option(parser)
    parser.add_argument(
        "--encode-by-parts",
        action="store_true",
        help="with --encoder: leave the features to python -m shards.encode; then the same without this",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    request = request_of(arguments)
    out = out_of(arguments, argv)
    defects: list[Defect] = []
    made = plan_set(
        out,
        request,
        lambda: open_source(request.source, defects=defects, **request.options),
        staging=arguments.staging,
        spool=arguments.spool,
        defects=defects,
        encode_by_parts=arguments.encode_by_parts,
    )
    shown = without_secret(out)
    if isinstance(made, Written):
        report(out, made, 0)
        return
    if isinstance(made, Encoding):
        parts = f"{made.runs:,} runs of samples to encode, in that many parts at most"
        print(f"{parts}: {spelled(f'python -m shards.encode {shown} --part 1/N')}, and so on to N/N")
        print("then: the same command without --encode-by-parts")
        return
    for level in made.levels.values():
        print(level.describe())
    print(f"planned: {made.samples:,} samples in {made.shards:,} shards")
    print(f"pack it: {spelled(f'python -m shards.pack {shown} --part 1/N')}, and so on to N/N")
    print(f"then: {spelled(f'python -m shards.finish {shown}')}")


if __name__ == "__main__":
    run(main)
