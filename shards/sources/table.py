"""Tables: parquet, csv and tsv files with an image or a text and a class or a caption a row.

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
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.labels import class_of_text
from nml.sources import ByteRange, Cell, Example, Kind, SourceSpec, whole_file
from shards.sources.columns import Columns, find_columns
from shards.sources.delimited import header, read_lines
from shards.sources.splits import Chosen, choose_split

# Rows in memory at a time; images of a web crawl are some 100 kB each.
ROWS = 256
READ_AHEAD = 1 << 20

Row = Sequence[Any]


class TableSource:
    """Rows of one or more tables of one format, in the order of their file names."""

    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self._typed = spec.name == "parquet"
        self._files, self.held_out = _files(spec)
        self.classes: tuple[str, ...] | None = None
        if self._typed:
            schema = _schema(self._files[0])
            self._columns = find_columns(spec, schema.names)
            if self._columns.kind == "class":
                self.classes = _class_names(schema, self._columns.supervision)
        else:
            self._columns = self._text_columns(self._files[0])
        self.kind: Kind = self._columns.kind

    def __iter__(self) -> Iterator[Example]:
        number = left_out = 0
        for file in self._files:
            rows = self._parquet(file) if self._typed else self._lines(file)
            for supervision, key, *content in rows:
                example = self._example(supervision, key, content, number, file)
                number += 1
                if example is None:
                    left_out += 1
                else:
                    yield example
        if left_out:
            print(f"left out {left_out:,} of {number:,} rows: they hold no image", file=sys.stderr)

    def _wanted(self) -> list[str | None]:
        """Return the columns of supervision, key and content."""
        columns = self._columns
        return [columns.supervision, columns.key, *(columns.texts or (columns.image,))]

    def _text_columns(self, file: Path) -> Columns:
        names = header(file, self._spec)
        if names is not None:
            return find_columns(self._spec, names, typed=False)
        width = len(next(read_lines(file, self._spec.name)).values)
        numbers = [str(place) for place in range(width)]
        return Columns(None, tuple(numbers[:-1]), numbers[-1], "class", None)

    def _lines(self, file: Path) -> Iterator[Row]:
        """Yield supervision, key and content of each line of a text table."""
        names = header(file, self._spec)
        lines = read_lines(file, self._spec.name)
        if names is not None:
            next(lines)
        width = None if names is None else len(names)
        places: list[int | None] | None = None
        for number, values in lines:
            width = width or len(values)
            if len(values) != width or width < 2:
                raise UserError(
                    f"{file}: line {number} has {len(values)} columns", possible=str(max(width, 2))
                )
            if places is None:
                places = self._places(file, names or [str(place) for place in range(width)])
            supervision, *others = (None if place is None else values[place] for place in places)
            if self.kind == "class":
                yield [self._class(supervision, file, f"line {number}"), *others]
            else:
                yield [supervision, *others]

    def _class(self, text: str | None, file: Path, where: str) -> int | str:
        try:
            return class_of_text(text or "")
        except ValueError as error:
            raise UserError(f"{file}: {where} has {error}", mend="remove the line, or fill it in") from error

    def _places(self, file: Path, names: Sequence[str]) -> list[int | None]:
        try:
            return [None if name is None else names.index(name) for name in self._wanted()]
        except ValueError as error:
            raise UserError(
                f"{file}: columns {', '.join(names)}", mend="all files must have the same columns"
            ) from error

    def _parquet(self, file: Path) -> Iterator[Row]:
        """Yield supervision, key and content of each row of a Parquet file.

        A task reads its images when it needs them: content is then where they lie.
        """
        image, names = self._columns.image, self._wanted()
        try:
            # Pre-buffering would keep all that was read until the file is closed, and without a
            # buffer size a column of a row group, which may be gigabytes, is read at once.
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD) as table:
                schema = table.schema_arrow
                self._check_types(schema, file)
                leaf = _leaf(schema, image) if image and self._spec.end == "task" else None
                whole = leaf is None or _may_lack(table, leaf)
                read = [name for name in names if name is not None and (whole or name != image)]
                row = 0
                for batch in table.iter_batches(ROWS if whole else 16 * ROWS, columns=read):
                    columns = [
                        batch.column(name).to_pylist() if name in read else [None] * len(batch)
                        for name in names
                    ]
                    for supervision, key, *content in zip(*columns, strict=True):
                        if leaf is not None and (not whole or _content_and_path(content[0])[0] is not None):
                            content = [Cell(str(file), leaf, row)]
                        row += 1
                        yield [supervision, key, *content]
        except KeyError as error:
            raise UserError(
                f"{file}: has no column {error}", mend="all files must have the same columns"
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, "parquet", error) from error

    def _check_types(self, schema: pa.Schema, file: Path) -> None:
        for name in self._columns.texts:
            kind = schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{file}: column {name} is {kind}", possible="texts")

    def _example(self, supervision: Any, key: Any, content: Row, number: int, file: Path) -> Example | None:
        name = None if key is None or self._columns.key is None else str(key)
        if self._columns.texts:
            if None in content:
                raise UserError(f"{file}: row {number} has no text", mend="remove the row, or fill it in")
            return self._named(name or self._spec.row_name(number), supervision, b"", content, number, file)
        image, path = _content_and_path(content[0])
        if image is None and not path:
            return None
        # The names of tasks with images in their tables were published without the path beside each.
        if path and (image is None or self._spec.end == "set"):
            name = name or path
        place = _located(Path(str(path)), file) if image is None else image
        return self._named(name or self._spec.row_name(number), supervision, place, (), number, file)

    def _named(self, name: str, supervision: Any, image: Any, texts: Row, number: int, file: Path) -> Example:
        if supervision is None:
            raise UserError(
                f"{file}: row {number} has no {self._columns.supervision}",
                mend="remove the row, or fill it in",
            )
        return Example(name, supervision, image, tuple(texts))


def _content_and_path(image: Any) -> tuple[bytes | Cell | None, str | None]:
    """Return an image cell's bytes and path; Hugging Face stores a struct of both."""
    if isinstance(image, dict):
        return image.get("bytes"), image.get("path")
    if isinstance(image, bytes | Cell):
        return image, None
    return None, image


def _leaf(schema: pa.Schema, column: str) -> str | None:
    """Return the leaf of a column that holds bytes; None if it holds paths."""
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{column}.bytes"
    return column if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _may_lack(table: pq.ParquetFile, leaf: str) -> bool:
    """Return whether some rows may have no bytes, as far as the file's statistics tell."""
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    for group in groups:
        columns = [group.column(number) for number in range(group.num_columns)]
        statistics = next((each.statistics for each in columns if each.path_in_schema == leaf), None)
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


def _located(path: Path, table: Path) -> ByteRange:
    """Return an image file's range; relative paths start at the table's folder."""
    path = table.parent.absolute() / path.expanduser()
    try:
        return whole_file(path)
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
            f"{spec.shown}: there is no file {argument}, and no *.{spec.name} below it",
            mend="check the path",
        )
    return choose_split(spec, found, path if path.is_dir() else None)


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, "parquet", error) from error


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face stores in a parquet's metadata, if it is there."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        names = json.loads(stored)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) or None


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    return UserError(
        f"{file}: cannot be read as {kind}: {error}", mend="check the file and the source's name"
    )
