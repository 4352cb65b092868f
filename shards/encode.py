"""``python -m shards.encode``: compute features of a set that is being planned, or a part of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import make_folder
from nml.set_file import SET_FILE
from nml.urls import without_secret
from shards.catalogue import CATALOGUE
from shards.destination import Destination, open_destination
from shards.encoding import brought, encode_runs, read_mark, runs_of
from shards.features import Encoder, parse_encoder
from shards.parts import Part
from shards.planning import read_plan
from shards.request_options import add_staging_option

PROGRAM = "python -m shards.encode"

_EPILOG = """
examples:
  python -m shards.plan --source imagefolder:imagenet/train --noise 0.2 --model instance-dependent \\
      --encoder timm:resnet50 --out data/shards/in1k --encode-by-parts
  python -m shards.encode data/shards/in1k --part 1/8      and so on to 8/8, anywhere, at once, in any order
  python -m shards.plan ... the same without --encode-by-parts, which makes the plan of them

The same command goes on with what is not computed yet. What no part has computed, the plan does.
"""


def encode_part(out: str | Path, part: Part, *, staging: str | Path | None = None) -> int | None:
    """Compute the features of one part of the samples, as far as they are not there.

    Args:
        out: Folder or URL that ``shards.plan --encode-by-parts`` was given.
        part: Which runs of samples.
        staging: For a URL, the local folder that files are made in before they are uploaded.

    Returns:
        Of how many samples; None where the plan is made, and nothing is left to do.

    Raises:
        UserError: If nothing is to be encoded there, an image cannot be read, or the encoder is another one.
    """
    destination = open_destination(out, staging)
    if destination.read(SET_FILE) is not None or read_plan(destination) is not None:
        return None
    mark = read_mark(destination)
    if mark is None:
        raise UserError(
            f"{destination.shown}: nothing is to be encoded there",
            mend="begin it: python -m shards.plan --source SOURCE --model instance-dependent "
            f"--encoder ENCODER --out {destination.shown} --encode-by-parts",
        )
    encoder = Encoder(parse_encoder(mark["request"]["encoder"]))
    if not encoder.is_the_one(mark["encoder"]):
        raise UserError(
            f"--encoder {mark['request']['encoder']}: has other weights or another preprocessing here than "
            f"where {destination.shown} was begun",
            mend="name the same file of weights, with the same timm",
        )
    make_folder(destination.work)
    with _catalogue(destination, mark) as folder:
        return encode_runs(destination, folder, mark, encoder, part.of(runs_of(mark)))


@contextlib.contextmanager
def _catalogue(destination: Destination, mark: dict[str, Any]) -> Iterator[Path]:
    """Give the folder of the catalogue: where it was written, or one that it is copied to for as long."""
    with contextlib.ExitStack() as stack:
        folder = destination.work
        if not (folder / CATALOGUE).exists():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=destination.work)))
        if not brought(destination, folder, mark):
            raise UserError(
                f"{destination.shown}: what the source holds was written down otherwise than it is there now",
                mend="run the command again with shards.plan --encode-by-parts",
            )
        yield folder


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Compute a part of the features that instance-dependent noise is planned from.\n"
        "Any number of processes, on any number of machines, may do so at once.",
        epilog=_EPILOG,
    )
    parser.add_argument("set", type=str, help="folder or URL that was given to shards.plan as --out")
    parser.add_argument("--part", type=str, default="1/1", help="which part: 1/8 to 8/8 (default: all)")
    add_staging_option(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    part = Part.parse(arguments.part)
    samples = encode_part(arguments.set, part, staging=arguments.staging)
    if samples is None:
        print(f"{without_secret(arguments.set)}: is planned, nothing to do")
        return
    print(f"part {part.number}/{part.count}: {samples:,} samples encoded now")


if __name__ == "__main__":
    run(main)
