"""Tables: parquet, csv and tsv files with an image or a text and a class or a caption a row.

``parquet:PATH``, ``csv:PATH`` and ``tsv:PATH``, where PATH is a file, a folder or a pattern with
``*``. Images may be bytes (as img2dataset writes parquet), paths, or Hugging Face's struct of both.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nml.delimited import UnreadableTable, read_lines
from nml.errors import UserError
from nml.labels import class_of_text
from nml.remote_files import AnyPath, files_at, is_url
from nml.sources import AtHand, ByteRange, Cell, Example, Kind, SourceSpec, whole_file
from nml.untrusted import parse_json, shown
from shards.sources.columns import Columns, find_columns
from shards.sources.files import files_of, is_below
from shards.sources.headers import header

# Rows in memory at a time; images of a web crawl are some 100 kB each.
ROWS = 256
READ_AHEAD = 1 << 20
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
_AS_CSV = "where it was written with quotes, as pandas does it, name it csv:{}, which reads tabs too"

Row = Sequence[Any]


class TableSource:
    """Rows of parquet, csv or tsv files: images (bytes, paths, or structs of both) or texts, with a class."""

    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_members()
        self._spec = spec
        self._typed = spec.name == "parquet"
        self._files, self.held_out = files_of(spec, f"**/*.{spec.name}")
        self.classes: tuple[str, ...] | None = None
        if self._typed:
            schema = _schema(self._files[0])
            self._columns = find_columns(spec, schema.names)
            kind = schema.field(self._columns.supervision).type
            if self._columns.kind == "caption" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                self._columns = self._columns._replace(kind="captions")
            if self._columns.kind == "class":
                self.classes = _class_names(schema, self._columns.supervision)
        else:
            self._columns = self._columns_of_text(self._files[0])
        self.kind: Kind = self._columns.kind
        # What a row is read as: its supervision, its key, an image or one or two texts, and further classes.
        self._wanted = [
            self._columns.supervision,
            self._columns.key,
            *(self._columns.texts or (self._columns.image,)),
            *self._columns.more,
            *filter(None, [self._columns.number]),
        ]

    def __iter__(self) -> Iterator[Example]:
        number = left_out = 0
        for file in self._files:
            for row in self._rows(file):
                try:
                    example = self._example(row, number, file)
                except _Lacking as error:
                    refused = UserError(
                        f"{file}: row {number} has no {error}", mend="remove the row, or fill it in"
                    )
                    self._spec.refuse(f"row {number}", f"no {self.kind}", refused)
                    number += 1
                    continue
                except _NoFile as error:
                    self._spec.refuse(f"row {number}", "unreadable image", error)
                    number += 1
                    continue
                number += 1
                if example is None:
                    left_out += 1
                else:
                    yield example
        if left_out:
            print(f"left out {left_out:,} of {number:,} rows: they hold no image", file=sys.stderr)

    def _rows(self, file: AnyPath) -> Iterator[Row]:
        """Yield the rows of a file, as far as it can be read."""
        try:
            yield from self._parquet(file) if self._typed else self._lines(file)
        except UnreadableTable as error:
            self._spec.refuse(file.name, "unreadable file", error)

    def _columns_of_text(self, file: AnyPath) -> Columns:
        names = header(file, self._spec)
        if names is not None:
            return find_columns(self._spec, names, typed=False)
        *texts, label = map(
            str, range(len(next(read_lines(file, self._spec.name, encoding=self._spec.encoding)).values))
        )
        return Columns(None, () if self._spec.end == "labels" else tuple(texts), label, "class", None)

    def _lines(self, file: AnyPath) -> Iterator[Row]:
        """Yield the rows of a text table, classes read as numbers or names."""
        lines = read_lines(file, self._spec.name, encoding=self._spec.encoding)
        names = header(file, self._spec)
        if names is not None:
            next(lines)
        places: list[int | None] | None = None
        for number, values in lines:
            names = names or [str(place) for place in range(len(values))]
            places = places or self._places(file, names)
            if len(values) != len(names):
                refused = UserError(
                    f"{file}: line {number} has {len(values)} columns",
                    possible=str(len(names)),
                    mend=_AS_CSV.format(file) if self._spec.name == "tsv" else "",
                )
                self._spec.refuse(f"line {number}", "bad row", refused)
                continue
            if self._spec.name == "tsv" and self._spec.end == "set":
                _refuse_quoted(file, number, values)
            row: list[Any] = [None if place is None else values[place] for place in places]
            if self.kind == "class" and self._spec.target == "classification":
                try:
                    row[0] = class_of_text(row[0])
                except ValueError as error:
                    refused = UserError(
                        f"{file}: line {number} has {error}",
                        mend="remove the line, or fill it in"
                        + ("" if self._spec.end == "set" else "; or say target=regression, or multilabel"),
                    )
                    self._spec.refuse(f"line {number}", _label_defect(row[0]), refused)
                    continue
            yield row

    def _places(self, file: AnyPath, names: Sequence[str]) -> list[int | None]:
        least = 1 if self._spec.end == "labels" else 2
        if len(names) < least or not {*self._wanted} <= {*names, None}:
            raise UserError(
                f"{file}: columns {', '.join(names)}",
                possible=f"{'one' if least == 1 else 'two'} or more, the same in all files",
            )
        return [None if name is None else names.index(name) for name in self._wanted]

    def _parquet(self, file: AnyPath) -> Iterator[Row]:
        """Yield the rows of a Parquet file.

        A task reads its images when it needs them: in their place stands where they lie.
        """
        image = self._columns.image
        try:
            # Pre-buffering would keep all that was read until the file is closed, and without a
            # buffer size a column of a row group, which may be gigabytes, is read at once.
            with pq.ParquetFile(_source(file), pre_buffer=False, buffer_size=READ_AHEAD) as table:
                schema = table.schema_arrow
                self._refuse_other_types(schema, file)
                cells = _leaf(schema, image) if image else None
                leaf = cells if self._spec.end == "task" else None
                whole = leaf is None or _may_lack(table, leaf)
                read = [name for name in self._wanted if name is not None and (whole or name != image)]
                numbers = itertools.count()
                for batch in table.iter_batches(ROWS if whole else 16 * ROWS, columns=read):
                    nothing = [None] * len(batch)
                    columns = (
                        batch.column(name).to_pylist() if name in read else nothing for name in self._wanted
                    )
                    for row, number in zip(zip(*columns, strict=True), numbers, strict=False):
                        if leaf is None and cells is not None:
                            # Of a set: read again when its shard is packed.
                            yield [*row[:2], _at_hand(row[2], Cell(str(file), cells, number)), *row[3:]]
                        elif leaf is None or (whole and _content_and_path(row[2])[0] is None):
                            yield row
                        else:
                            yield [*row[:2], Cell(str(file), leaf, number), *row[3:]]
        except KeyError as error:
            raise UserError(
                f"{file}: has no column {error}", mend="all files must have the same columns"
            ) from error
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error

    def _refuse_other_types(self, schema: pa.Schema, file: AnyPath) -> None:
        for name in self._columns.texts:
            kind = schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{file}: column {name} is {kind}", possible="texts")

    def _example(self, row: Row, row_number: int, file: AnyPath) -> Example | None:
        supervision, key, *content = row
        texts, more = self._columns.texts, self._columns.more
        if more:
            content, rest = content[: -len(more)], content[-len(more) :]
            for value, column in zip(rest, more, strict=True):
                if value is None:
                    raise _Lacking(column)
            supervision = supervision if supervision is None else (supervision, *rest)
        elsewhere = self._spec.end == "labels"
        image, path = (b"", None) if texts or elsewhere else _content_and_path(content[0])
        if image is None and not path:
            return None
        number = -1
        if self._columns.number:
            number = _caption_number(content[1], file)
            content = content[:1]
        for value, column in zip((supervision, *content), (self._columns.supervision, *texts), strict=False):
            if value is None:
                raise _Lacking(column)
        # The names of tasks with images in their tables were published without the path beside each.
        named = key is not None
        if key is None and path and (image is None or self._spec.end == "set"):
            key = path
        name = self._spec.row_name(row_number) if key is None else str(key)
        place = self._image_file(str(path), file) if image is None else image
        pair = tuple(content) if texts else ()
        return Example(name, supervision, place, pair, row=row_number, number=number, named=named)

    def _image_file(self, path: str, table: AnyPath) -> ByteRange | AtHand:
        """Return an image beside a table."""
        if isinstance(table, Path):
            return self._located(Path(path), table)
        if self._spec.image_root or path.startswith("/") or is_url(path) or ".." in path.split("/"):
            raise UserError(
                f"{table}: names the image {path}",
                possible="of a table at a URL, paths below its folder",
                mend="copy the table to a machine that has the images",
            )
        url = str(table.parent / path)
        content = files_at(url).read(url)
        return AtHand(content, ByteRange(url, 0, len(content)))

    def _located(self, path: Path, table: Path) -> ByteRange:
        """Return an image file's range; relative paths start at the table's folder, and stay in it.

        Who wrote the table could otherwise put any image of its reader's into shards that are published.
        """
        folder = table.parent.absolute()
        try:
            path = folder / path.expanduser()
            inside = path.resolve().parent if path.is_symlink() else path.parent
            found = whole_file(path)
        # What is no path at all holds a zero byte, or leads round in a circle.
        except (OSError, ValueError, RuntimeError) as error:
            raise _NoFile(
                f"{table}: names the image {path}: {getattr(error, 'strerror', None) or error}",
                mend="paths are relative to the table's folder; mend the table or the file",
            ) from error
        roots = (str(folder), *filter(None, [self._spec.image_root]))
        if not is_below(inside, roots):
            raise UserError(
                f"{table}: names the image {path}, which lies outside of {' and '.join(roots)}",
                mend=f"if it is yours to use, say where images are: {self._spec.flag('image_root')}FOLDER",
            )
        return found


def _refuse_quoted(file: AnyPath, number: int, values: list[str]) -> None:
    """Refuse values that were quoted as pandas does it: read as they stand, captions have the quotes."""
    quoted = next((value for value in values if '""' in value and _QUOTED.fullmatch(value)), None)
    if quoted is not None:
        raise UserError(
            f"{file}: line {number} has a value in quotes, {shown(quoted)}, and a tsv has none",
            mend=_AS_CSV.format(file),
        )


def _caption_number(value: Any, file: AnyPath) -> int:
    """Return which of an image's captions a row has; -1 where it does not say."""
    try:
        # As pandas writes a column of whole numbers in which some are missing.
        return int(float(value)) if value not in (None, "") else -1
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{file}: the number of a caption is {shown(value)}",
            mend="rename the column, or number the captions",
        ) from None


class _Lacking(Exception):
    """A row without a value in the column that the message names."""


class _NoFile(UserError):
    """A row that names an image that is not there."""


def _label_defect(text: str) -> str:
    return "bad class" if text.strip() else "no class"


def _at_hand(image: Any, place: Cell) -> Any:
    """Return an image cell whose bytes, if it has any, are told where they lie."""
    if isinstance(image, dict) and image.get("bytes") is not None:
        return {**image, "bytes": AtHand(image["bytes"], place)}
    return AtHand(image, place) if isinstance(image, bytes) else image


def _content_and_path(image: Any) -> tuple[bytes | Cell | AtHand | None, str | None]:
    """Return an image cell's bytes and path; Hugging Face stores a struct of both."""
    if isinstance(image, dict):
        return image.get("bytes"), image.get("path")
    if isinstance(image, bytes | Cell | AtHand):
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
    paths = [table.schema.column(number).path for number in range(table.metadata.num_columns)]
    if leaf not in paths:
        return True
    for number in range(table.num_row_groups):
        # What pyarrow tells of a column ends the process where that is damaged; reading it is an error.
        next(table.iter_batches(1, row_groups=[number], columns=[leaf]), None)
        statistics = table.metadata.row_group(number).column(paths.index(leaf)).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


def _source(file: AnyPath) -> Any:
    """Return what PyArrow reads a file from."""
    return file if isinstance(file, Path) else file.open()


def _schema(file: AnyPath) -> pa.Schema:
    try:
        return pq.read_schema(_source(file))
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face stores in a parquet's metadata, if it is there."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        names = parse_json(stored)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) or None


def _unreadable(file: AnyPath, error: Exception) -> UnreadableTable:
    return UnreadableTable(
        f"{file}: cannot be read as parquet: {error}", mend="check the file and the source's name"
    )
