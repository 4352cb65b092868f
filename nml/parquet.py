"""Parquet files of somebody else's: how large they would be in memory is asked before they are.

A value that repeats is stored once, and a few hundred bytes may stand for gigabytes. Texts are therefore read
as a file stores them, once each, and written out only where that is no more than a reader takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.files import check_regular
from nml.untrusted import Untrusted

MOST_BYTES = 512 << 20
"""What a file may be in memory, however small it is."""
# Beyond that, how many times its own size. Hashes, which each row of a manifest has, do not shrink.
MOST_TIMES = 100


def iter_groups(
    path: Path, columns: Sequence[str] | None = None, *, most: int = MOST_BYTES
) -> Iterator[pa.Table]:
    """Yield the row groups of a file as tables, of types as they were written.

    Args:
        path: The file.
        columns: Columns to read, all by default; of those that are lists, everything below counts.
        most: Bytes that all of them may be in memory, beside a multiple of the file's own.

    Raises:
        OSError, pa.ArrowException: If it cannot be read.
        Untrusted: If it would be larger.
    """
    check_regular(path)
    most += MOST_TIMES * path.stat().st_size
    texts = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)]
    # Pre-buffering would keep every row group until the file is closed.
    with pq.ParquetFile(path, pre_buffer=False, read_dictionary=texts) as file:
        # What pyarrow tells of a column ends the process where that is damaged; reading it is an error.
        file.scan_contents(columns and list(columns))
        for number in range(file.num_row_groups):
            _check(_claimed(file, number, columns), most, path)
            table = file.read_row_group(number, columns=columns and list(columns))
            _check(sum(map(_written_out, table.columns)), most, path)
            table = _plain(table)
            most -= table.nbytes
            yield table


def read_parquet(path: Path, columns: Sequence[str] | None = None, *, most: int = MOST_BYTES) -> pa.Table:
    """Return a file in whole; see :func:`iter_groups`."""
    tables = list(iter_groups(path, columns, most=most))
    return pa.concat_tables(tables) if tables else pq.read_table(path, columns=columns and list(columns))


def _claimed(file: pq.ParquetFile, number: int, columns: Sequence[str] | None) -> int:
    group = file.metadata.row_group(number)
    paths = [file.schema.column(place).path for place in range(group.num_columns)]
    read = [place for place, path in enumerate(paths) if not columns or path.partition(".")[0] in columns]
    parts = [group.column(place) for place in read]
    # Numbers have up to eight bytes each, however few are stored.
    return sum(max(part.total_uncompressed_size, 8 * part.num_values) for part in parts)


def _written_out(column: pa.ChunkedArray) -> int:
    """Return the bytes of the texts of a column that holds each of them once; 0 of any other."""
    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = [pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in column.chunks]
    return sum(pc.sum(pc.cast(each, pa.int64())).as_py() or 0 for each in lengths)


def _plain(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = field.with_type(field.type.value_type)
            table = table.set_column(place, plain, table.column(place).cast(plain.type))
    return table


def _check(size: int, most: int, path: Path) -> None:
    if size > most:
        raise Untrusted(f"it would be more than {size:,} bytes in memory", path)
