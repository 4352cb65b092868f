"""``python -m probes.features``: what the feature store holds, whether it is whole, and clearing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from nml.cli import Parser, refuse_unused, run
from nml.errors import UserError
from nml.untrusted import read_object
from probes.features.store import DONE, KEY, LOCK, folder_bytes, is_whole, read_key, remove_entry, under_way

EXAMPLES = """\
examples:
  python -m probes.features list
  python -m probes.features verify                  # read every byte again, compare with its hash
  python -m probes.features gc --days 30            # what it would remove
  python -m probes.features gc --days 30 --remove   # remove it
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.features", "Look after the feature store.", epilog=EXAMPLES, config=False
    )
    add = parser.add_argument
    add(
        "command",
        type=str,
        choices=["list", "verify", "gc"],
        help="list entries, compare them with their hashes, or collect those not used for long",
    )
    add("features", type=str, nargs="?", default="features", help="folder of the feature store")
    add("--days", type=float, default=30.0, help="gc: entries that nobody wrote or used for so long")
    add(
        "--remove",
        type=bool,
        default=False,
        nargs="?",
        const=True,
        help="gc: remove them, not only name them",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    refuse_unused(parser, arguments, {"days": ("gc",), "remove": ("gc",)})
    root = Path(arguments.features)
    entries = sorted(path for path in root.glob("*") if (path / LOCK).exists() or (path / KEY).exists())
    if not entries:
        raise UserError(f"no features in {root}", mend="name the folder of a feature store")
    if arguments.command == "gc":
        now = time.time()
        entries = [path for path in entries if _age_days(path, now) >= arguments.days and not under_way(path)]
    total = 0
    damaged = []
    for path in entries:
        total += folder_bytes(path)
        whole = arguments.command != "verify" or is_whole(path)
        print(_line(path) + ("" if whole else "  DAMAGED"))
        damaged += [] if whole else [path]
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(entries)} entries are not what was written",
            mend=f"remove them and run again: {' '.join(map(str, damaged))}",
        )
    verb = ""
    if arguments.command == "gc":
        verb = " removed" if arguments.remove else " to remove; add --remove to do so"
        if arguments.remove:
            for path in entries:
                remove_entry(path)
    print(f"{len(entries)} entries, {total / 1e6:.1f} MB{verb}: {root}")


def _line(path: Path) -> str:
    names = read_key(path).get("names", {})
    shape = "unfinished"
    if (path / DONE).exists():
        rows, dim = (*read_object(path / DONE, shape=list)["shape"], "?", "?")[:2]
        shape = f"{rows} x {dim}"
    megabytes = folder_bytes(path) / 1e6
    view = read_key(path).get("parts", {}).get("view", 0)
    what = f"{names.get('encoder', '?')} on {names.get('dataset', '?')}" + (f", view {view}" if view else "")
    return f"{path.name}  {shape:>14}  {megabytes:9.1f} MB  {what}"


def _age_days(path: Path, now: float) -> float:
    return (now - max(file.stat().st_mtime for file in path.iterdir())) / 86400


if __name__ == "__main__":
    run(main)
