"""``python -m shards.finish``: make a set of shards that are all packed."""

from __future__ import annotations

from nml.cli import Parser, run
from shards.request_options import add_staging_option
from shards.write import report
from shards.writing import finish_set

PROGRAM = "python -m shards.finish"

_EPILOG = """
example:
  python -m shards.finish data/shards/in1k
"""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Write the manifest, the index and set.json of a set whose shards python -m shards.pack has packed.\n"
        "While shards are missing it names them, and does nothing.",
        epilog=_EPILOG,
    )
    parser.add_argument("set", type=str, help="folder or URL that was given to shards.plan as --out")
    add_staging_option(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    report(arguments.set, finish_set(arguments.set, staging=arguments.staging), 0)


if __name__ == "__main__":
    run(main)
