"""``python -m shards.index``: make foreign WebDataset tars readable as a shard set.

Every tar is walked once, its images hashed, and a manifest, an index and set.json are put beside
it, or into a folder of their own (:mod:`shards.sidecar`). The tars stay as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from nml.cli import Parser, is_interactive, run
from nml.errors import UserError
from nml.images import image_extension
from nml.set_file import SET_FILE
from nml.urls import without_secret
from shards.catalogue import tell_of_gaps
from shards.finishing import SetDescription, finish
from shards.foreign_tars import elsewhere, in_place, is_set, made_folder, make_sidecar, not_in_place
from shards.hashing import key_of
from shards.ladder import clean_column
from shards.manifest import SOURCE_ROW, manifest_schema
from shards.packing import TreeHash
from shards.request_options import worker_count
from shards.set_info import SetInfo, Shard
from shards.shardset import ShardSet
from shards.sidecar import tar_here
from shards.sources import SourceSpec
from shards.sources.webdataset import WebDatasetSource
from shards.storage import refuse_url
from shards.tarbytes import TarBytes
from shards.tarwalk import TarSample

PROGRAM = "python -m shards.index"
_EPILOG = """
examples:
  python -m shards.index /data/cc12m --caption-column caption          in place
  python -m shards.index s3://bucket/cc12m --out ./sidecar             nothing is written to the bucket
  python -m shards.index 'https://host/cc12m-{0000..0099}.tar' --out ./sidecar
"""


class _Indexed(NamedTuple):
    """One tar, as a table: a web crawl's samples as Python objects would not fit in memory.

    Attributes:
        shard: What set.json says of it.
        rows: Its rows of the manifest but for the shard's number; classes as text.
        numbers: Whether every class is a number.
    """

    shard: Shard
    rows: pa.Table
    numbers: bool


def index_tars(
    location: str | Path, out: Path | None = None, *, label_column: str, caption_column: str, workers: int
) -> SetInfo:
    """Index tars, sorted by name, and return the set.

    Args:
        location: Their folder; for a sidecar also a tar, several by braces, or a URL of these.
        out: Folder of the sidecar; None to index the tars where they lie.
        label_column: Field of the ``.json`` that holds the class.
        caption_column: Field of the ``.json`` that holds the caption.
        workers: How many tars are walked at a time.

    Raises:
        UserError: If there is a set already, or a tar is damaged or holds what no set may hold.
    """
    folder = Path(location) if out is None else out
    if (folder / SET_FILE).exists():
        raise UserError(
            f"{folder}: is a shard set already", mend=f"to index anew, remove {folder / SET_FILE}"
        )
    _refuse_not_writable(folder, in_place=out is None)
    shown = without_secret(str(location))
    spec = SourceSpec(
        text=f"webdataset:{shown}",
        name="webdataset",
        argument=str(location),
        label_column=label_column,
        caption_column=caption_column,
    )
    if out is not None and is_set(str(location)):
        if label_column or caption_column:
            raise UserError(f"{shown}: is a set, which has its labels", mend="name no column")
        return make_sidecar(ShardSet.open(location), out)
    found = in_place(spec, folder) if out is None else elsewhere(spec)
    source = found.source
    with ThreadPoolExecutor(workers) as pool:
        progress = tqdm(
            pool.map(lambda place: _index_at(place, source), found.places),
            desc="indexing",
            total=len(found.places),
            unit=" tars",
            disable=not is_interactive(),
        )
        indexed = list(progress)
    source.tell()
    classes = _class_names(indexed) if source.kind == "class" else None
    indexed = _with_unique_keys(indexed)
    schema = manifest_schema(source.kind, [clean_column(source.kind)])

    def records() -> Iterator[tuple[Shard, pa.Table]]:
        start = 0
        for number, (shard, rows, _) in enumerate(indexed):
            table = rows.append_column("shard", pa.array(np.full(len(rows), number, np.int32)))
            table = table.append_column(SOURCE_ROW, pa.array(np.arange(start, start + len(table))))
            start += len(table)
            if classes is not None:
                table = _with_class_numbers(table, classes)
            yield shard, table.select(schema.names).cast(schema)

    return finish(
        made_folder(folder),
        records,
        SetDescription(kind=source.kind, classes=classes, source=spec.text, held_out=found.held_out),
    )


def _refuse_not_writable(folder: Path, *, in_place: bool) -> None:
    """Raise a UserError before the tars are walked, which may take hours."""
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"{folder}: cannot be written to",
            mend="keep the index elsewhere: --out FOLDER" if in_place else "name another --out",
        )


def _index_at(place: str, source: WebDatasetSource) -> _Indexed:
    """Index a tar; one at a URL keeps that, and is copied here as long as it takes."""
    if "://" not in place:
        return _index_tar(Path(place), source)
    with tar_here(place) as tar:
        try:
            indexed = _index_tar(tar, source)
        except UserError as error:
            raise UserError(
                error.what.replace(str(tar), place), possible=error.possible, mend=error.mend
            ) from error
    return indexed._replace(shard=replace(indexed.shard, url=place))


def _index_tar(tar: Path, source: WebDatasetSource) -> _Indexed:
    """Walk one tar and hash it."""
    size = tar.stat().st_size
    tree = TreeHash()
    rows = []
    with TarBytes(tar) as opened:
        if opened.compressed:
            raise not_in_place(tar)
        descriptor, position = opened.descriptor, 0
        for sample in source.samples(opened):
            row = _row(sample, source, descriptor, tar)
            tree.plain(_read(descriptor, row["image_offset"] - position, position))
            tree.image(row["sha256"])
            position = row["image_offset"] + row["image_size"]
            rows.append(row)
        tree.plain(_read(descriptor, size - position, position))
    column = clean_column(source.kind)
    numbers = all(isinstance(row[column], int) for row in rows)
    # Classes as text, until all are known.
    schema = manifest_schema("captions" if source.kind == "captions" else "caption", [column])
    if source.kind == "class":
        rows = [{**row, column: str(row[column])} for row in rows]
    table = pa.Table.from_pylist(rows, schema=schema)
    shard = Shard(tar.name, len(rows), size, tree.hexdigest())
    return _Indexed(shard, table.drop_columns(["shard", SOURCE_ROW]), numbers)


def _row(sample: TarSample, source: WebDatasetSource, descriptor: int, tar: Path) -> dict[str, Any]:
    image = source.image(sample)
    if image is None:
        raise UserError(f"{tar}: sample {sample.base!r} has no image", mend="leave the tar out")
    content = _read(descriptor, image.size, image.offset)
    if not content:
        raise UserError(f"{tar}: the image of sample {sample.base!r} has 0 bytes", mend="leave the tar out")
    text = sample.members.get("cls" if source.kind == "class" else "txt")
    record = sample.members.get("json")
    return {
        "key": key_of(sample.base),
        "image_extension": image_extension(content[:16]) or image.name.rpartition(".")[2],
        "image_offset": image.offset,
        "image_size": image.size,
        "sha256": hashlib.sha256(content).digest(),
        "supervision_offset": text.offset if text else None,
        "supervision_size": text.size if text else None,
        "json_offset": record.offset if record else None,
        "json_size": record.size if record else None,
        "source_name": f"{tar.name}/{sample.base}",
        clean_column(source.kind): source.supervision(sample, descriptor, tar),
    }


def _read(descriptor: int, size: int, offset: int) -> bytes:
    return os.pread(descriptor, size, offset) if size else b""


def _class_names(indexed: list[_Indexed]) -> tuple[str, ...]:
    """Return the names of the classes, sorted; numbers name themselves, in their own order."""
    names = {name for each in indexed for name in each.rows["label"].unique().to_pylist()}
    if names and all(each.numbers for each in indexed):
        numbers = sorted(map(int, names))
        tell_of_gaps(np.array(numbers, np.int64))
        return tuple(map(str, numbers))
    return tuple(sorted(names))


def _with_class_numbers(table: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    numbers = pc.index_in(table["label"], value_set=pa.array(classes, pa.string()))
    return table.set_column(table.column_names.index("label"), "label", numbers)


def _keys_of_several(indexed: list[_Indexed]) -> pa.Array:
    """Return the keys that more than one sample has."""
    chunks = [chunk for each in indexed for chunk in each.rows["key"].chunks]
    # As large strings: the keys of a web crawl may be more than the 2 GiB that an array of strings holds.
    counts = pa.chunked_array(chunks, pa.string()).cast(pa.large_string()).value_counts()
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1)).cast(pa.string())


def _with_unique_keys(indexed: list[_Indexed]) -> list[_Indexed]:
    """Put the tar's name before keys that occur in several tars.

    Raises:
        UserError: If two samples of one tar have one key.
    """
    twice = _keys_of_several(indexed)
    if not len(twice):
        return indexed
    named = [each._replace(rows=_with_tar_names(each.rows, twice)) for each in indexed]
    if len(still := _keys_of_several(named)):
        key = still[0].as_py()
        found = (each.rows.filter(pc.equal(each.rows["key"], key))["source_name"] for each in named)
        names = [name for column in found for name in column.to_pylist()]
        raise UserError(
            f"two samples have the key {key!r}: {' and '.join(names[:2])}",
            mend="give each sample of a tar a name of its own, and each tar one, or leave the tar out",
        )
    return named


def _with_tar_names(table: pa.Table, twice: pa.Array) -> pa.Table:
    named = [key_of(name.replace(".tar/", "_")) for name in table["source_name"].to_pylist()]
    keys = pc.if_else(pc.is_in(table["key"], value_set=twice), pa.array(named, pa.string()), table["key"])
    return table.set_column(table.column_names.index("key"), "key", keys)


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
        "--workers", default=None, type=int, help="tars walked at a time (default: one a core)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    refuse_url(arguments.out or arguments.set)
    info = index_tars(
        arguments.set,
        None if arguments.out is None else Path(arguments.out),
        label_column=arguments.label_column,
        caption_column=arguments.caption_column,
        workers=worker_count(arguments.workers),
    )
    each = "several captions" if info.kind == "captions" else f"a {info.kind}"
    print(f"{info.num_samples:,} samples in {len(info.shards)} tars, {each} each")
    print(f"set: {arguments.out or arguments.set}")


if __name__ == "__main__":
    run(main)
