"""Samples that share a name: captions of one image, or images whose files or places in tars are called alike.

A table that names its samples by its images' paths names them once in many: Caltech-101 has an
``image_0001.jpg`` in each class. A key that others have is then made from the row. Rows of captions that
share their image, too, are one sample with several captions. Keys that are alike after that are told apart
by their names' hashes.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from nml.errors import UserError
from nml.sources import Defect
from shards.arrow_columns import BATCH, hash_column, take_rows
from shards.captions import as_lists
from shards.hashing import Hashes, hash_keys, key_of, with_hash
from shards.noise import Integers

# What a catalogue says of its samples that nobody needs once the keys are made.
SHARING = [("row", pa.int64()), ("number", pa.int64()), ("image", pa.uint64()), ("named", pa.bool_())]
_TAR = ".tar"
_ROW_KEY = "row-{:09d}"


def gathered(table: pa.Table) -> pa.Table:
    """Make one sample of rows that share their name and image, where each has a caption.

    Its captions are in the order of their numbers, where the table has these, else of their rows.

    Args:
        table: A catalogue.
    """
    if "caption" not in table.column_names or pa.types.is_list(table.schema.field("caption").type):
        return table
    numbers = table["number"].to_numpy()
    leader = np.arange(table.num_rows, dtype=np.int64)
    rank = np.zeros(table.num_rows, np.int64)
    for rows in _alike(table, "image").values():
        for place, row in enumerate(sorted(rows, key=lambda row: (numbers[row], row))):
            leader[row], rank[row] = rows[0], place
    first = leader == np.arange(len(leader))
    if first.all():
        return table
    order = np.lexsort((rank, leader))
    starts = np.searchsorted(leader[order], np.append(np.flatnonzero(first), len(leader)))
    lists = as_lists(take_rows(table["caption"], order), starts)
    print(
        f"{len(leader):,} captions of {int(first.sum()):,} images: rows of one name and image are one sample",
        file=sys.stderr,
    )
    kept = table.filter(pa.array(first))
    return kept.set_column(kept.column_names.index("caption"), "caption", lists)


def tell_of_shared_images(batches: Iterable[pa.RecordBatch]) -> None:
    """Tell where rows of a table share their images, as captions of one do, and not their names."""
    of_rows = []
    for batch in batches:
        if "caption" not in batch.schema.names or pa.types.is_list(batch.schema.field("caption").type):
            return
        of_rows.append(batch["image"].to_numpy()[batch["row"].to_numpy() >= 0])
    images = np.concatenate(of_rows) if of_rows else np.empty(0)
    if len(images) and len(found := np.unique(images)) * 2 <= len(images):
        print(
            f"{len(images):,} captions are of {len(found):,} images, and each row has a name of its own; the "
            "captions of an image are one sample where a column names the image: --key-column image_id",
            file=sys.stderr,
        )


def with_row_keys(table: pa.Table) -> pa.Table:
    """Give samples the keys of their rows where others have their name, and no column names them."""
    named = table["named"]
    rows = [
        row for group in _alike(table).values() if len(group) > 1 for row in group if not named[row].as_py()
    ]
    if not rows:
        return table
    keys = table["key"].to_pylist()
    for row in rows:
        keys[row] = _ROW_KEY.format(table["row"][row].as_py())
    print(
        f"{len(rows):,} of {len(keys):,} samples share their name with another: the row makes their key",
        file=sys.stderr,
    )
    chunks = [pa.array(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
    return table.set_column(table.column_names.index("key"), "key", pa.chunked_array(chunks))


def _alike(table: pa.Table, *also: str) -> dict[tuple[object, ...], list[int]]:
    """Return rows of a table by name, and by what else they have in common; those alone may be left out."""
    hashes = hash_column(table["name"])
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rows: Integers = np.flatnonzero((counts[inverse] > 1) & (table["row"].to_numpy() >= 0))
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    columns = (take_rows(table[name], rows).to_pylist() for name in ("name", *also))
    for row, *values in zip(rows.tolist(), *columns, strict=True):
        found[tuple(values)].append(row)
    return found


def unique_keys(table: pa.Table, hashes: Hashes) -> tuple[list[str] | None, Hashes, Integers]:
    """Return the keys where some had to be made unique, their hashes, and the rows with an earlier's name."""
    rows = duplicates(hashes)
    if not len(rows):
        return None, hashes, rows
    keys = table["key"].to_pylist()
    found = {row: table["name"][row].as_py() for row in rows.tolist()}
    twice = Counter(found.values())
    for row, name in found.items():
        path = table["path"][row].as_py()
        # Tars that all count from 0 have equal names; shards.index makes the same keys of them.
        in_tar = twice[name] > 1 and path.endswith(_TAR)
        keys[row] = (
            key_of(f"{Path(path).name.removesuffix(_TAR)}_{name}") if in_tar else with_hash(keys[row], name)
        )
    hashes = hash_keys(keys)
    still = duplicates(hashes)
    _, first = np.unique(hashes[still], return_index=True)
    return keys, hashes, np.delete(still, first)


def named_twice(table: pa.Table, row: int) -> Defect:
    """Return the defect of a row of a catalogue that has an earlier row's name."""
    name, path = table["name"][row].as_py(), table["path"][row].as_py()
    mend = (
        "give each tar a name of its own, and each sample one within its tar"
        if path.endswith(_TAR)
        else "give each sample a name of its own, for example with --key-column"
    )
    return Defect(
        name, "duplicate key", UserError(f"--source: two samples are both named {name!r}", mend=mend)
    )


def duplicates(hashes: Hashes) -> Integers:
    """Return the rows whose hash occurs more than once."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    rows: Integers = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    return rows
