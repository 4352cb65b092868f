"""``python -m probes.results``: look at results, choose among them, export them, trace them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nml.cli import Parser, refuse_unused, run
from nml.errors import UserError
from nml.files import write_bytes
from probes.results import read_rows
from probes.results.export import COLUMNS, FORMATS, check_columns, select
from probes.results.packing import pack_rows
from probes.results.trace import find_row, trace

EXAMPLES = """\
examples:
  python -m probes.results show
  python -m probes.results query results/ --where head=nmtune domain=ood "accuracy>0.5"
  python -m probes.results export results/ --format latex --out table.tex
  python -m probes.results trace 3f0c9a --results results/
  python -m probes.results pack results/ --out mine/results      to publish: a file a run, no local paths
"""


DEFAULT_RESULTS = "results"


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("python -m probes.results", "Look at results.", epilog=EXAMPLES, config=False)
    add = parser.add_argument
    add("command", type=str, choices=["show", "query", "export", "trace", "pack"], help="what to do")
    add("target", type=str, nargs="?", default=None, help="trace: a row id or its beginning; else the folder")
    add("--results", type=str, default=DEFAULT_RESULTS, help="folder of result rows")
    add("--where", type=str, nargs="+", default=[], help="conditions FIELD=VALUE, also != < <= > >=")
    add("--columns", type=str, nargs="+", default=list(COLUMNS), help="fields of a row")
    add("--format", type=str, choices=sorted(FORMATS), default=None, help="text; csv when exporting")
    add("--out", type=str, default=None, help="a new file to write; without it the terminal; pack: a folder")
    add("--features", type=str, default="features", help="folder of the feature store, to trace")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    shown = ("show", "query", "export")
    refuse_unused(
        parser,
        arguments,
        {
            "where": (*shown, "pack"),
            "columns": shown,
            "format": shown,
            "out": (*shown, "pack"),
            "features": ("trace",),
        },
    )
    if arguments.command != "trace" and arguments.target and arguments.results != DEFAULT_RESULTS:
        raise UserError(
            f"{arguments.target} and --results {arguments.results}: two folders", mend="leave one of them out"
        )
    if arguments.command == "trace":
        if arguments.target is None:
            raise UserError(
                "trace: no row named", possible="a row id", mend="see: python -m probes.results show"
            )
        row = find_row(read_rows(arguments.results), arguments.target)
        print("\n".join(trace(row, features=Path(arguments.features))))
        return
    if arguments.command == "pack":
        if arguments.out is None:
            raise UserError("pack: no folder named", mend="--out FOLDER")
        rows = select(read_rows(arguments.target or arguments.results), arguments.where)
        files = pack_rows(rows, Path(arguments.out), Path.cwd())
        size = sum(file.stat().st_size for file in files)
        print(f"{len(rows)} rows in {len(files)} files, {size / 1e6:.2f} MB: {arguments.out}")
        return
    if arguments.out is not None and Path(arguments.out).exists():
        raise UserError(f"--out {arguments.out}: exists already", mend="name another file, or remove it")
    rows = select(read_rows(arguments.target or arguments.results), arguments.where)
    form = arguments.format or ("csv" if arguments.command == "export" else "text")
    text = FORMATS[form](rows, check_columns(arguments.columns))
    if arguments.out is None:
        print(text)
    else:
        write_bytes(Path(arguments.out), (text + "\n").encode())
        print(f"{len(rows)} rows: {arguments.out}")


if __name__ == "__main__":
    run(main)
