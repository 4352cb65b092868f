"""``python -m shards.sign``: sign a set, so that others can tell that it is yours and as you left it."""

from __future__ import annotations

from pathlib import Path

from nml.cli import Parser, run
from nml.set_file import SET_FILE, SIGNATURE_FILE
from nml.signatures import sign
from shards.shardset import ShardSet
from shards.storage import refuse_url

PROGRAM = "python -m shards.sign"

_EPILOG = """
examples:
  openssl ecparam -name prime256v1 -genkey -noout -out key.pem
  openssl ec -in key.pem -pubout -out key.pub
  python -m shards.sign data/shards/digits --key key.pem
  python -m shards.verify data/shards/digits --key key.pub
"""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        f"Sign a shard set. {SIGNATURE_FILE} covers {SET_FILE}, which holds the hashes of all the rest.\n"
        "A level added later needs a new signature.",
        epilog=_EPILOG,
    )
    parser.add_argument("set", type=str, help="folder of the set")
    parser.add_argument("--key", type=str, required=True, help="private key in PEM")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    refuse_url(arguments.set)
    # One that does not read is not to be vouched for.
    ShardSet.open(arguments.set)
    print(f"signature: {sign(Path(arguments.set), [SET_FILE], SIGNATURE_FILE, arguments.key)}")


if __name__ == "__main__":
    run(main)
