"""Tables: parquet, csv and tsv files with image bytes or paths and a class or a caption a row.

``parquet:PATH``, ``csv:PATH`` and ``tsv:PATH``, where PATH is a file, a folder or a pattern with
``*``. Images may be bytes (as img2dataset writes parquet), paths, or Hugging Face's struct of both.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from nml.errors import UserError
from shards.noise import Kind
from shards.sources import ByteRange, Example, SourceSpec
from shards.sources.columns import find_columns
from shards.sources.splits import Chosen, choose_split

# Rows in memory at a time; images of a web crawl are some 100 kB each.
ROWS = 256
READ_AHEAD = 1 << 20


class TableSource:
    """Rows of one or more tables of one format, in the order of their file names."""

    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        self._format = spec.name
        self._files, self.held_out = _files(spec)
        schema = self._schema(self._files[0])
        self._columns = find_columns(spec, schema.names)
        self.kind: Kind = self._columns.kind
        self.classes = _class_names(schema, self._columns.supervision) if self.kind == "class" else None

    def __iter__(self) -> Iterator[Example]:
        number = left_out = 0
        for file in self._files:
            for row in self._rows(file):
                example = self._example(row, number, file)
                number += 1
                if example is None:
                    left_out += 1
                else:
                    yield example
        if left_out:
            print(f"left out {left_out:,} of {number:,} rows: they hold no image", file=sys.stderr)

    def _schema(self, file: Path) -> pa.Schema:
        try:
            if self._format == "parquet":
                return pq.read_schema(file)
            with self._open_csv(file) as reader:
                return reader.schema
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, self._format, error) from error

    def _open_csv(self, file: Path, texts: Sequence[str] = ()) -> pa_csv.CSVStreamingReader:
        delimiter = "\t" if self._format == "tsv" else ","
        # A tab-separated caption may hold a lone quotation mark.
        quote = False if delimiter == "\t" else '"'
        # What is quoted may hold line breaks, as captions do.
        parse = pa_csv.ParseOptions(
            delimiter=delimiter, quote_char=quote, newlines_in_values=quote is not False
        )
        # Captions that all happen to be numbers are texts still.
        convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
        return pa_csv.open_csv(file, parse_options=parse, convert_options=convert)

    def _rows(self, file: Path) -> Iterator[dict[str, Any]]:
        """Yield the wanted columns of each row."""
        wanted = [self._columns.image, self._columns.supervision]
        if self._columns.key:
            wanted.append(self._columns.key)
        try:
            if self._format == "parquet":
                # Pre-buffering would keep all that was read until the file is closed, and without a
                # buffer size a column of a row group, which may be gigabytes, is read at once.
                with pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD) as table:
                    for batch in table.iter_batches(ROWS, columns=wanted):
                        yield from batch.to_pylist()
                return
            texts = [self._columns.supervision] if self.kind == "caption" else []
            with self._open_csv(file, texts) as reader:
                for batch in reader:
                    yield from batch.select(wanted).to_pylist()
        except KeyError as error:
            raise UserError(
                f"{file}: has no column {error}", mend="all files must have the same columns"
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, self._format, error) from error

    def _example(self, row: dict[str, Any], number: int, file: Path) -> Example | None:
        image, supervision = row[self._columns.image], row[self._columns.supervision]
        content, path = _content_and_path(image)
        if content is None and path is None:
            return None
        if supervision is None:
            raise UserError(
                f"{file}: row {number} has no {self._columns.supervision}",
                mend="remove the row, or fill it in",
            )
        name = str(row[self._columns.key]) if self._columns.key else path or f"row-{number:09d}"
        if content is None:
            return Example(name, supervision, _located(Path(str(path)), file))
        return Example(name, supervision, content)


def _content_and_path(image: Any) -> tuple[bytes | None, str | None]:
    """Return an image cell's bytes and path; Hugging Face stores a struct of both."""
    if isinstance(image, dict):
        return image.get("bytes"), image.get("path")
    if isinstance(image, bytes):
        return image, None
    return None, image


def _located(path: Path, table: Path) -> ByteRange:
    """Return an image file's range; relative paths start at the table's folder."""
    path = table.parent.absolute() / path.expanduser()
    try:
        return ByteRange(str(path), 0, path.stat().st_size)
    except OSError as error:
        raise UserError(
            f"{table}: names the image {path}: {error.strerror}",
            mend="paths are relative to the table's folder; mend the table or the file",
        ) from error


def _files(spec: SourceSpec) -> Chosen:
    """Return the table files of one split that a source's argument names, sorted."""
    argument = str(Path(spec.require_argument("file", f"{spec.name}:/data/train.{spec.name}")).expanduser())
    path = Path(argument)
    if path.is_dir():
        found = sorted(path.rglob(f"*.{spec.name}"))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(argument, recursive=True))  # noqa: PTH207 - absolute patterns
    if not found:
        raise UserError(
            f"--source {spec.text}: there is no such file, and no *.{spec.name} below it",
            mend="check the path",
        )
    return choose_split(spec.split, found, spec.text, path if path.is_dir() else None)


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face stores in a parquet's metadata, if it is there."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        names = json.loads(stored)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names))


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    return UserError(
        f"{file}: cannot be read as {kind}: {error}", mend="check the file and the source's name"
    )
