"""``python -m pretrain.curves``: the curves of runs as one picture; each run draws its own at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nml import cli, layout
from nml.curves import Curves, read_curves
from nml.errors import UserError
from nml.files import write_bytes

SUFFIXES = (".svg", ".png")
EPILOG = """examples:
  python -m pretrain.curves runs/quickstart-n20-seed0
  python -m pretrain.curves runs/quickstart-n*-seed0 --out noise.png"""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser(
        "python -m pretrain.curves",
        "Draw loss, validation, learning rate, throughput and where the time went, of one run or several.\n"
        "Runs that are not finished are drawn as far as they are.",
        epilog=EPILOG,
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="picture to write, .svg or .png, or both where it has neither; default: curves in the run "
        "folder, or for several runs in this one",
    )
    options = parser.parse_args(argv)
    runs = [Path(run) for run in options.runs]
    default = runs[0] / layout.CURVES if len(runs) == 1 else Path(layout.CURVES)
    for file in write_curves([read_curves(run) for run in runs], _files(options.out, default)):
        print(f"curves: {file}")


def _files(out: str | None, default: Path) -> list[Path]:
    path = default if out is None else Path(out)
    if path.is_dir():
        raise UserError(f"--out {out}: is a folder", possible="a file name, with .svg, .png or neither")
    if path.suffix in SUFFIXES:
        return [path]
    if out is not None and path.suffix:
        raise UserError(
            f"--out {out}: a picture of another kind", possible="a file name, with .svg, .png or neither"
        )
    return [path.with_name(path.name + suffix) for suffix in SUFFIXES]


def write_curves(runs: Sequence[Curves], files: Sequence[Path]) -> Sequence[Path]:
    """Draw runs into one picture, write it to files by their suffixes, and return the files."""
    # It takes a second that refused options need not wait for.
    from nml.palette import rendered
    from pretrain.curves_picture import draw

    picture = draw(runs)
    for file in files:
        write_bytes(file, rendered(picture, file.suffix.removeprefix(".")))
    return files


def draw_at_end(run: Path) -> None:
    """Draw the curves of a run that is done; what keeps them from being drawn is said, and harms nothing."""
    try:
        write_curves([read_curves(run)], _files(None, run / layout.CURVES))
    except Exception as error:
        # Weights are what a run is for: no picture is worth its exit status.
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"note: the curves were not drawn: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
