"""``python -m shards.index``: make foreign WebDataset tars readable as a shard set.

Every tar is walked once, its images hashed, and a manifest, an index and set.json are put beside
it, or into a folder of their own (:mod:`shards.sidecar`). The tars stay as they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from nml.cli import Parser, run
from nml.errors import UserError
from nml.set_file import SET_FILE, WORK_FOLDER, interrupted, read_set_record
from nml.urls import without_secret
from shards.finishing import SetDescription, finish, refuse_unreadable
from shards.foreign_tars import elsewhere, in_place, is_set, make_sidecar
from shards.indexed_tars import TarRecords
from shards.request_options import worker_count
from shards.set_info import SetInfo, Shard
from shards.shardset import ShardSet
from shards.sources import SourceSpec
from shards.storage import refuse_url
from shards.writing import Part

PROGRAM = "python -m shards.index"
_EPILOG = """
examples:
  python -m shards.index /data/cc12m --caption-column caption          in place
  python -m shards.index s3://bucket/cc12m --out ./sidecar             nothing is written to the bucket
  python -m shards.index 'https://host/cc12m-{0000..0099}.tar' --out ./sidecar
"""


def index_tars(
    location: str | Path,
    out: Path | None = None,
    *,
    label_column: str,
    caption_column: str,
    members: str = "",
    workers: int,
    part: Part | None = None,
) -> SetInfo | int:
    """Index tars, sorted by name, and return the set; of a part, how many tars it has.

    What is known of each tar is kept until the set is there, so a call goes on where another one was killed.

    Args:
        location: Their folder; for a sidecar also a tar, several by braces, or a URL of these.
        out: Folder of the sidecar; None to index the tars where they lie.
        label_column: Field of the ``.json`` that holds the class.
        caption_column: Field of the ``.json`` that holds the caption.
        members: Members of a tar that make a sample, as ``shards.write --members`` takes them.
        workers: How many tars are walked at a time.
        part: Walk the tars of one part, for another call to finish; None for all.

    Raises:
        UserError: If there is a set already, or a tar is damaged or holds what no set may hold.
    """
    folder = Path(location) if out is None else out
    _refuse_taken(folder)
    _refuse_not_writable(folder, in_place=out is None)
    shown = without_secret(str(location))
    spec = SourceSpec(
        text=f"webdataset:{shown}",
        name="webdataset",
        argument=str(location),
        label_column=label_column,
        caption_column=caption_column,
        members=members,
    )
    if out is not None and is_set(str(location)):
        if label_column or caption_column or members:
            raise UserError(f"{shown}: is a set, which has its labels", mend="name no column and no members")
        return make_sidecar(ShardSet.open(location), out)
    found = in_place(spec, folder) if out is None else elsewhere(spec)
    source = found.source
    _refuse_too_many(shown, found.places, in_place=out is None)
    records = TarRecords(folder, source, found.places)
    records.make(part.of(len(found.places)) if part else range(len(found.places)), workers)
    source.tell()
    if part:
        return len(part.of(len(found.places)))
    classes = records.settle()
    info = finish(
        folder,
        records.tables,
        SetDescription(
            kind=source.kind,
            classes=classes,
            source=spec.text,
            parent=source.parent,
            held_out=found.held_out,
        ),
    )
    records.remove()
    return info


def _refuse_taken(folder: Path) -> None:
    """Raise a UserError for the folder of a set, or of one that is being written."""
    if (folder / SET_FILE).exists():
        mend = f"to index anew, remove {folder / SET_FILE}"
        with contextlib.suppress(UserError):
            if read_set_record(folder).get("request"):
                mend = f"it reads as it is; further levels: python -m shards.relabel {folder} --noise RATIO"
        raise UserError(f"{folder}: is a shard set already", mend=mend)
    if (folder / WORK_FOLDER).is_dir():
        raise interrupted(folder)


def _refuse_too_many(shown: str, places: Sequence[str], *, in_place: bool) -> None:
    """Raise a UserError before so many tars are walked that nobody will read what names them."""
    longest = max(places, key=len, default="")
    name = longest.rpartition("/")[2]
    typical = Shard(name, 10_000, 10**9, "0" * 64, "" if in_place else longest)
    refuse_unreadable(
        shown,
        typical,
        len(places),
        0,
        0,
        (),
        mend="index some at a time, into sidecars of their own",
    )


def _refuse_not_writable(folder: Path, *, in_place: bool) -> None:
    """Raise a UserError before the tars are walked, which may take hours."""
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"{folder}: cannot be written to",
            mend="keep the index elsewhere: --out FOLDER" if in_place else "name another --out",
        )


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Index existing WebDataset tars, so that they read like a set written here. Without --out, what is\n"
        "found is put beside them; with it nothing is, and they may lie on any server, or be a set already.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "set", type=str, help="folder of .tar files; with --out also a tar, {0000..0099}, or a URL of these"
    )
    parser.add_argument("--out", default=None, type=str, help="folder of the sidecar")
    parser.add_argument("--label-column", default="", help="field of the .json that holds the class")
    parser.add_argument("--caption-column", default="", help="field of the .json that holds the caption")
    parser.add_argument(
        "--members",
        default="",
        help="members of a tar that make a sample: image=input.jpg,caption=outputs.txt or label=class.txt",
    )
    parser.add_argument(
        "--part",
        default=None,
        type=str,
        help="walk a part of the tars, 1/8 to 8/8, anywhere and at once; the command without it ends it",
    )
    parser.add_argument(
        "--workers", default=None, type=int, help="tars walked at a time (default: one a core)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    refuse_url(arguments.out or arguments.set)
    part = Part.parse(arguments.part) if arguments.part else None
    info = index_tars(
        arguments.set,
        None if arguments.out is None else Path(arguments.out),
        label_column=arguments.label_column,
        caption_column=arguments.caption_column,
        members=arguments.members,
        workers=worker_count(arguments.workers),
        part=part,
    )
    if isinstance(info, int):
        print(f"part {arguments.part}: {info:,} tars indexed")
        return
    each = "several captions" if info.kind == "captions" else f"a {info.kind}"
    print(f"{info.num_samples:,} samples in {len(info.shards)} tars, {each} each")
    print(f"set: {arguments.out or arguments.set}")


if __name__ == "__main__":
    run(main)
