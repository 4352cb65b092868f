"""What is known of each tar that is indexed, in a file of its own until the set is there.

A file a tar, so that any number of processes index some of them, none is walked twice after a kill, and no
more than one tar's samples a thread are in memory::

    FOLDER/.indexing/
      0001.tar.arrow      its rows of the manifest, then the SHA-256 of these
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import check_regular, make_folder, write_bytes
from nml.images import image_extension
from nml.remote_files import files_at
from nml.untrusted import check_object, parse_json, typed
from shards.arrow_columns import hash_column
from shards.class_numbers import tell_of_gaps
from shards.foreign_tars import not_in_place
from shards.hashing import key_of
from shards.ladder import clean_column
from shards.manifest import SOURCE_ROW, manifest_schema
from shards.packing import TreeHash
from shards.set_info import Shard
from shards.sidecar import tar_here
from shards.sources.webdataset import WebDatasetSource
from shards.tarbytes import TarBytes
from shards.tarwalk import TarSample

_FOLDER = ".indexing"
_DIGEST_BYTES = 32
_VERSION = 1


class Indexed(NamedTuple):
    """One tar, as a table: a web crawl's samples as Python objects would not fit in memory.

    Attributes:
        shard: What set.json says of it.
        rows: Its rows of the manifest but for the shard's number; classes as text.
        numbers: Whether every class is a number.
    """

    shard: Shard
    rows: pa.Table
    numbers: bool


class TarRecords:
    """The records of all tars of a set that is being indexed.

    Args:
        folder: Folder of the set.
        source: Reads the samples.
        places: The tars: paths, or URLs.
    """

    def __init__(self, folder: Path, source: WebDatasetSource, places: Sequence[str]) -> None:
        self._work = folder / _FOLDER
        self._source = source
        self._places = places
        self._classes: tuple[str, ...] | None = None
        self._twice = pa.array([], pa.string())

    def make(self, numbers: Iterable[int], workers: int) -> None:
        """Walk the tars, by their numbers, that no record is there of.

        Raises:
            UserError: If one is damaged or holds what no set may hold; the records of others are kept.
        """
        make_folder(self._work)
        numbers = list(numbers)
        try:
            self._make_all(numbers, workers)
        finally:
            # Where nothing came of it, nothing is left.
            with contextlib.suppress(OSError):
                self._work.rmdir()
                self._work.parent.rmdir()

    def _make_all(self, numbers: Sequence[int], workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in tqdm(
                pool.map(self._make, numbers),
                desc="indexing",
                total=len(numbers),
                unit=" tars",
                disable=not is_interactive(),
            ):
                pass

    def settle(self) -> tuple[str, ...] | None:
        """Find the names of the classes, and the keys that need their tar's name; return the former.

        Raises:
            UserError: If two samples of one tar have one key.
        """
        if self._source.kind == "class":
            self._classes = _class_names(self._read(number) for number in range(len(self._places)))
        self._twice = self._keys_of_several()
        if len(self._twice) and len(still := self._keys_of_several()):
            key = still[0].as_py()
            names = [name for each in self._named() for name in _named_so(each, key)]
            raise UserError(
                f"two samples have the key {key!r}: {' and '.join(names[:2])}",
                mend="give each sample of a tar a name of its own, and each tar one, or leave the tar out",
            )
        return self._classes

    def tables(self) -> Iterator[tuple[Shard, pa.Table]]:
        """Yield each tar with its rows of the manifest, in order."""
        schema = manifest_schema(self._source.kind, [clean_column(self._source.kind)])
        start = 0
        for number, (shard, rows, _) in enumerate(self._named()):
            table = rows.append_column("shard", pa.array(np.full(len(rows), number, np.int32)))
            table = table.append_column(SOURCE_ROW, pa.array(np.arange(start, start + len(table))))
            start += len(table)
            if self._classes is not None:
                table = _with_class_numbers(table, self._classes)
            yield shard, table.select(schema.names).cast(schema)

    def remove(self) -> None:
        """Remove the records: the set is there."""
        shutil.rmtree(self._work)

    def _make(self, number: int) -> None:
        place = self._places[number]
        identity = self._identity(place)
        if self._find(number, identity) is None:
            indexed = index_at(place, self._source)
            facts = {
                "identity": identity,
                "shard": asdict(indexed.shard),
                "numbers": indexed.numbers,
            }
            schema = indexed.rows.schema.with_metadata({"facts": json.dumps(facts)})
            content = pa.BufferOutputStream()
            with pa.ipc.new_file(content, schema) as writer:
                writer.write_table(indexed.rows.cast(schema))
            record = content.getvalue()
            write_bytes(self._path(number), b"".join([record, hashlib.sha256(record).digest()]))

    def _find(self, number: int, identity: list[Any] | None = None) -> Indexed | None:
        """Return the record of a tar; None if there is none as it was written, or not of this identity."""
        try:
            check_regular(self._path(number))
            content = self._path(number).read_bytes()
        except FileNotFoundError:
            return None
        record, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(record).digest() != digest:
            return None
        # Tars come from others, and with them may come what calls itself a record.
        try:
            table = pa.ipc.open_file(record).read_all()
            table.validate(full=True)
            known = check_object(parse_json(table.schema.metadata[b"facts"]), numbers=bool)
            shard = typed(Shard, known.get("shard"))
        except (ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        if identity is not None and known.get("identity") != identity:
            return None
        return Indexed(shard, table.replace_schema_metadata(None), known["numbers"])

    def _read(self, number: int) -> Indexed:
        found = self._find(number)
        if found is None:
            raise UserError(f"{self._path(number)}: is gone or damaged", mend="run the same command again")
        return found

    def _named(self) -> Iterator[Indexed]:
        """Yield the records, with keys that are unique as far as the tars' names make them so."""
        for number in range(len(self._places)):
            each = self._read(number)
            yield each._replace(rows=_with_tar_names(each.rows, self._twice)) if len(self._twice) else each

    def _keys_of_several(self) -> pa.Array:
        """Return the keys that more than one sample has."""
        hashes = [hash_column(each.rows["key"]) for each in self._named()]
        found, counts = np.unique(np.concatenate(hashes) if hashes else [], return_counts=True)
        several = found[counts > 1]
        if not len(several):
            return pa.array([], pa.string())
        # Of keys whose hashes alone are equal, none is left over here.
        chunks = [
            each.rows["key"].combine_chunks().filter(pa.array(np.isin(own, several)))
            for each, own in zip(self._named(), hashes, strict=True)
        ]
        # As large strings: the keys of a web crawl may be more than the 2 GiB that an array of strings holds.
        keys = pa.chunked_array(chunks, pa.string()).cast(pa.large_string()).value_counts()
        return keys.field("values").filter(pc.greater(keys.field("counts"), 1)).cast(pa.string())

    def _identity(self, place: str) -> list[Any]:
        """Return what tells whether a tar, and what is read of it, is as it was."""
        asked = [_VERSION, self._source.kind, *self._source.asked]
        if "://" in place:
            return [*asked, files_at(place).size(place)]
        found = Path(place).stat()
        return [*asked, found.st_size, found.st_mtime_ns]

    def _path(self, number: int) -> Path:
        return self._work / f"{self._places[number].rpartition('/')[2]}.arrow"


def index_at(place: str, source: WebDatasetSource) -> Indexed:
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


def _index_tar(tar: Path, source: WebDatasetSource) -> Indexed:
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
    return Indexed(shard, table.drop_columns(["shard", SOURCE_ROW]), numbers)


def _row(sample: TarSample, source: WebDatasetSource, descriptor: int, tar: Path) -> dict[str, Any]:
    image = source.image(sample)
    if image is None:
        raise UserError(f"{tar}: sample {sample.base!r} has no image", mend="leave the tar out")
    content = _read(descriptor, image.size, image.offset)
    if not content:
        raise UserError(f"{tar}: the image of sample {sample.base!r} has 0 bytes", mend="leave the tar out")
    text = source.supervision_member(sample)
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


def _class_names(indexed: Iterable[Indexed]) -> tuple[str, ...]:
    """Return the names of the classes, sorted; numbers name themselves, in their own order."""
    names: set[str] = set()
    numbers = True
    for each in indexed:
        names.update(each.rows["label"].unique().to_pylist())
        numbers = numbers and each.numbers
    if names and numbers:
        ascending = sorted(map(int, names))
        tell_of_gaps(np.array(ascending, np.int64))
        return tuple(map(str, ascending))
    return tuple(sorted(names))


def _with_class_numbers(table: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    numbers = pc.index_in(table["label"], value_set=pa.array(classes, pa.string()))
    return table.set_column(table.column_names.index("label"), "label", numbers)


def _named_so(each: Indexed, key: str) -> list[str]:
    names: list[str] = each.rows.filter(pc.equal(each.rows["key"], key))["source_name"].to_pylist()
    return names


def _with_tar_names(table: pa.Table, twice: pa.Array) -> pa.Table:
    named = [key_of(name.replace(".tar/", "_")) for name in table["source_name"].to_pylist()]
    keys = pc.if_else(pc.is_in(table["key"], value_set=twice), pa.array(named, pa.string()), table["key"])
    return table.set_column(table.column_names.index("key"), "key", keys)
