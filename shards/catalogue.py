"""The catalogue: what a source holds, on disk, without the images.

One pass over the source writes an Arrow file with a row a sample. Images that do not lie in a
readable file of their own are appended to a spool beside it, so that afterwards every image is a
byte range and shards can be packed in any order by any process.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import is_utf8
from nml.remote_files import is_url
from nml.sources import AtHand, ByteRange, Cell, Defect, Example, Source, content_of
from shards.arrow_columns import BATCH, KeyColumn, hash_column
from shards.captions import flat, starts_of, with_texts
from shards.class_numbers import has_gaps, numbered
from shards.defects import Checks, image_defects, settle
from shards.hashing import Hashes, hash_keys, key_of
from shards.ladder import clean_column
from shards.manifest import supervision_fields
from shards.noise import Integers, Kind, Population
from shards.shared_names import (
    SHARING,
    duplicates,
    gathered,
    named_twice,
    tell_of_shared_images,
    unique_keys,
    with_row_keys,
)

CATALOGUE = "catalogue.arrow"
SPOOL = "spool.bin"
HASHES = "hashes.npy"


class Catalogue(NamedTuple):
    """A catalogue read back.

    Attributes:
        table: Memory-mapped rows in source order: key, name, path, offset, size, and ``label`` or
            ``caption``.
        hashes: Hash of each key, uint64 [N].
        kind: ``class``, ``caption`` or ``captions``.
        classes: Class names in index order; None for captions.
        labels: Class of each sample, int64 [N]; empty for captions.
        folder: Where it lies, to be read a batch at a time: what is read of the mapped rows counts as memory
            of the process. None where it is in memory alone.
    """

    table: pa.Table
    hashes: Hashes
    kind: Kind
    classes: tuple[str, ...] | None
    labels: Integers
    folder: Path | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, a batch in memory at a time."""
        return iter(self.table.to_batches()) if self.folder is None else iter_catalogue(self.folder)

    def population(self) -> Population:
        """Return what a noise plan needs."""
        population = Population(
            kind=self.kind,
            hashes=self.hashes,
            labels=self.labels,
            num_classes=len(self.classes or ()),
            texts=np.empty(0, np.uint64),
            keys=KeyColumn(self.table["key"]),
            names=KeyColumn(self.table["name"]),
            classes=self.classes,
        )
        if self.kind == "class":
            return population
        texts, counts = [], [np.zeros(1, np.int64)]
        for batch in self.batches():
            captions = pa.chunked_array([batch["caption"]])
            texts.append(hash_column(flat(captions)))
            counts.append(np.diff(starts_of(captions)))
        starts = np.cumsum(np.concatenate(counts)) if self.kind == "captions" else None
        return with_texts(population, np.concatenate(texts), starts)


def write_catalogue(
    source: Source,
    folder: Path,
    *,
    spooled: bool = True,
    keep_cells: bool = False,
    checks: Checks | None = None,
    defects: list[Defect] | None = None,
) -> None:
    """Read a source once and write its catalogue, and its spool if it needs one, into ``folder``.

    Args:
        source: The source.
        folder: Where the files go.
        checks: What is asked of the samples, and how many bad ones may be left out; none by default.
        defects: Where the source notes bad samples, if it does; the others found are noted there too.
        keep_cells: Whether images in tables go to the spool, too, instead of being read again.
        spooled: Whether images that lie nowhere by themselves are kept; else their places mean nothing.

    Raises:
        UserError: If the source is empty or cannot be read, or has too many bad samples.
    """
    checks = checks or Checks()
    defects = [] if defects is None else defects
    schema = _schema(source.kind)
    names: dict[str, int] = {}
    samples = 0
    with (
        (folder / SPOOL if spooled else Path(os.devnull)).open("wb") as spool,
        pa.OSFile(str(folder / CATALOGUE), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        tqdm(desc="reading the source", unit=" samples", disable=not is_interactive()) as progress,
    ):
        for batch in _batched(iter(source)):
            sound = _sound(batch, source, checks, defects, spooled)
            if keep_cells:
                sound = [_without_cell(example) for example in sound]
            writer.write_batch(_record_batch(sound, schema, spool, source, names))
            progress.update(len(batch))
            samples += len(sound)
        if not samples:
            settle(defects, 0, checks)
            raise UserError("--source: the source holds no sample", mend="check the path and the split")
    twice = _resolve(folder, names, source.classes, defects)
    settle(defects, samples - twice, checks)


def clean_population(source: Source) -> Population:
    """Read a source's samples and classes alone, as :func:`write_catalogue` and a plan read them.

    Raises:
        UserError: If the source is empty or cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_catalogue(source, Path(folder), spooled=False)
        catalogue = read_catalogue(Path(folder), source.classes)
        population = catalogue.population()
        return replace(population, keys=list(population.keys), names=list(population.names))


def _batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield lists of examples, small in number and in bytes: spooled images pass through memory."""
    iterator = iter(examples)
    while batch := list(islice(iterator, 1)):
        held = 0
        for example in iterator:
            batch.append(example)
            held += len(content_of(example.image) or b"")
            if len(batch) == BATCH or held > 64 << 20:
                break
        yield batch


def _schema(kind: Kind) -> pa.Schema:
    return pa.schema(
        [
            ("key", pa.string()),
            ("name", pa.string()),
            ("path", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            *supervision_fields(kind, [clean_column(kind)]),
            ("leaf", pa.string()),
            *SHARING,
        ]
    )


def _record_batch(
    batch: list[Example], schema: pa.Schema, spool: IO[bytes], source: Source, names: dict[str, int]
) -> pa.RecordBatch:
    places = [_located(example, spool) for example in batch]
    supervision: Sequence[int | str | tuple[str, ...]]
    if source.kind == "class":
        known = {name: number for number, name in enumerate(source.classes or ())}
        supervision = [_class_index(example.supervision, known, names) for example in batch]
    else:
        supervision = [example.supervision for example in batch]
    return pa.record_batch(
        [
            pa.array([key_of(example.name) for example in batch]),
            pa.array([example.name for example in batch]),
            pa.array([_anywhere(place.path) for place in places]),
            pa.array([place.offset for place in places], pa.int64()),
            pa.array([place.size for place in places], pa.int64()),
            pa.array(supervision, schema.field(5).type),
            pa.array([place.leaf for place in places]),
            pa.array([example.row for example in batch], pa.int64()),
            pa.array([example.number for example in batch], pa.int64()),
            pa.array([_image_hash(example, source.kind) for example in batch], pa.uint64()),
            pa.array([example.named for example in batch]),
        ],
        schema=schema,
    )


def _without_cell(example: Example) -> Example:
    image = example.image
    if isinstance(image, AtHand) and isinstance(image.place, Cell):
        return example._replace(image=image.content)
    return example


class _Located(NamedTuple):
    """Where an image lies; ``offset`` is its row where ``leaf`` names a column of a table."""

    path: str
    leaf: str
    offset: int
    size: int


def _located(example: Example, spool: IO[bytes]) -> _Located:
    place = example.place(spool)
    if isinstance(place, ByteRange):
        return _Located(place.path, "", place.offset, place.size)
    # Of a row alone nothing tells how large its image is.
    size = len(content_of(example.image) or b"")
    return _Located(place.path, place.column, place.row, size)


def _anywhere(path: str) -> str:
    """Return a path that means the same in every folder: others pack what one process has planned."""
    return path if not path or is_url(path) else os.path.abspath(path)  # noqa: PTH100 - a million of them


def _class_index(value: int | str, known: dict[str, int], names: dict[str, int]) -> int:
    """Return the class as an index; names that are not known are numbered as they come, downwards from -1."""
    if isinstance(value, str):
        return known[value] if value in known else names.setdefault(value, -1 - len(names))
    return value


def _sound(
    batch: list[Example], source: Source, checks: Checks, defects: list[Defect], images: bool
) -> list[Example]:
    """Return the samples of a batch that can be taken, with their classes as read; note the others."""
    labelled = []
    for example in batch:
        try:
            labelled.append(example._replace(supervision=_checked(example, source)))
        except UserError as error:
            kind = "bad class" if source.kind == "class" else "no caption"
            defects.append(Defect(example.name, kind, error))
            continue
        place = example.image.place if isinstance(example.image, AtHand) else example.image
        path = "" if isinstance(place, bytes) else place.path
        if not is_utf8(example.name + path):
            named = UserError(
                f"--source: the name {path or example.name} is no UTF-8",
                mend="rename the file or folder, or name a link to it",
            )
            defects.append(Defect(labelled.pop().name, "bad name", named))
    if not images:
        return labelled
    found = image_defects(labelled, decode=checks.decode)
    defects += [defect for defect in found if defect is not None]
    return [example for example, defect in zip(labelled, found, strict=True) if defect is None]


def _image_hash(example: Example, kind: Kind) -> int:
    """Return what tells whether two rows of captions have one image; 0 where nobody asks."""
    if kind != "caption" or example.row < 0:
        return 0
    content = content_of(example.image)
    image = repr(example.image).encode() if content is None else content
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")


def _checked(example: Example, source: Source) -> int | str | tuple[str, ...]:
    value = example.checked(source.kind, "--source")
    if source.classes is not None and isinstance(value, int) and value >= len(source.classes):
        raise UserError(
            f"--source: sample {example.name!r} has class {value}",
            possible=f"0 to {len(source.classes) - 1}",
        )
    return value


def _resolve(
    folder: Path, names: dict[str, int], known: tuple[str, ...] | None, defects: list[Defect]
) -> int:
    """Number class names in sorted order and make duplicate keys unique, rewriting the file if need be.

    Returns:
        How many samples were taken out, as an earlier one has their name; they are noted as defects.
    """
    read = table = map_catalogue(folder)
    hashes = np.concatenate([hash_keys(batch["key"].to_pylist()) for batch in iter_catalogue(folder)])
    if not len(duplicates(hashes)):
        tell_of_shared_images(iter_catalogue(folder))
    else:
        table = with_row_keys(gathered(table))
        hashes = hash_column(table["key"])
    keys, hashes, twice = unique_keys(table, hashes)
    if len(twice):
        defects += [named_twice(table, row) for row in twice.tolist()]
        kept = np.ones(table.num_rows, bool)
        kept[twice] = False
        table = table.filter(pa.array(kept))
        keys, hashes, _ = unique_keys(table, hash_column(table["key"]))
    metadata: dict[bytes, bytes] = {}
    if names or (known is None and "label" in table.column_names and has_gaps(_labels(table))):
        labels, classes = numbered(_labels(table), names, known)
        table = table.set_column(5, "label", pa.chunked_array([pa.array(labels, pa.int32())]))
        metadata[b"classes"] = "\0".join(classes).encode()
    if keys is not None:
        batches = [pa.array(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
        table = table.set_column(0, "key", pa.chunked_array(batches))
    if metadata or keys is not None or table is not read:
        resolved = folder / ("resolved-" + CATALOGUE)
        schema = table.schema.with_metadata(metadata)
        with pa.OSFile(str(resolved), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table.cast(schema), max_chunksize=BATCH)
        resolved.replace(folder / CATALOGUE)
    np.save(folder / HASHES, hashes)
    return len(twice)


def read_catalogue(folder: Path, source_classes: tuple[str, ...] | None) -> Catalogue:
    """Read back what :func:`write_catalogue` wrote."""
    table = map_catalogue(folder)
    hashes = np.load(folder / HASHES)
    if "caption" in table.column_names:
        kind: Kind = "captions" if pa.types.is_list(table.schema.field("caption").type) else "caption"
        return Catalogue(table, hashes, kind, None, np.empty(0, np.int64), folder)
    labels = _labels(table)
    stored = (table.schema.metadata or {}).get(b"classes")
    classes = tuple(stored.decode().split("\0")) if stored is not None else source_classes
    if classes is None:
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    return Catalogue(table, hashes, "class", classes, labels, folder)


def _labels(table: pa.Table) -> npt.NDArray[np.int64]:
    return table["label"].to_numpy().astype(np.int64)


def iter_catalogue(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the catalogue's rows, a batch in memory at a time."""
    with pa.OSFile(str(folder / CATALOGUE)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def map_catalogue(folder: Path) -> pa.Table:
    """Return the catalogue's rows, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(folder / CATALOGUE))).read_all()
