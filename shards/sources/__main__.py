"""``python -m shards.sources list`` and ``python -m shards.sources check NAME:ARGUMENT``."""

from __future__ import annotations

from nml.cli import Parser, refuse_unused, run
from nml.conformance import outcomes, show
from nml.errors import UserError
from nml.sources import SOURCES
from shards.sources.conformance import CHECKS, Subject

EPILOG = """\
examples:
  python -m shards.sources list
  python -m shards.sources check digits
  python -m shards.sources check parquet:/data/train.parquet --label-column fine_label
"""
OPTIONS = ("split", "image_column", "label_column", "caption_column", "key_column")


def main(argv: list[str] | None = None) -> int:
    """List the sources, or hold one to its contract on its data; return 1 if a check failed."""
    parser = Parser("python -m shards.sources", "List or check sources.", epilog=EPILOG, config=False)
    parser.add_argument("command", type=str, choices=["list", "check"], help="what to do")
    parser.add_argument("source", type=str, nargs="?", default="", help="NAME:ARGUMENT, as in shards.write")
    for option in OPTIONS:
        flag = "--" + option.replace("_", "-")
        parser.add_argument(flag, type=str, default="", help="as in shards.write")
    arguments = parser.parse_args(argv)
    refuse_unused(parser, arguments, dict.fromkeys(("source", *OPTIONS), ("check",)))
    if arguments.command == "list":
        SOURCES.show()
        return 0
    name = arguments.source.partition(":")[0]
    if not name:
        raise UserError("check: no source named", mend="see: python -m shards.sources list")
    source = SOURCES.load(name, where="source")
    options = {option: value for option in OPTIONS if (value := getattr(arguments, option))}
    found = outcomes(CHECKS, Subject(source, arguments.source, **options))
    return show(found, f"{name} of {SOURCES.find(name).owner}")


if __name__ == "__main__":
    run(main)
