"""Tasks in tables: ``parquet:`` with images or texts, ``tsv:`` with texts."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, RawSplit, assemble
from probes.tasks.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    TEXT_COLUMNS,
    find_column,
    unreadable,
)
from probes.tasks.samplesets import ImageBytes, Texts
from probes.tasks.task import Task, TaskRecord
from probes.tasks.tsv import read_tsv

# Row groups of images that are kept decompressed.
GROUPS_IN_MEMORY = 4
KEY_COLUMNS = ("key", "__key__", "idx", "id")


class ParquetTask:
    """``parquet:TRAIN,TEST``: images (bytes, or a struct with bytes) or texts, and a label."""

    record = TaskRecord(
        name="parquet",
        modality="image",
        num_classes=0,
        ood=("every further file", "or shifts of the test samples"),
        source="your own Parquet files: parquet:TRAIN,TEST[,OOD][,image=COLUMN][,text=COLUMN][,label=COLUMN]",
        revision="hash of the content",
        licence="yours",
    )

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task of the files."""
        check_options(spec, (*OPTIONS, "image", "text", "pair", "label"), where="--task")
        return assemble(spec, functools.partial(read_parquet, columns=spec.options))


class TsvTask:
    """``tsv:TRAIN,TEST``: a text, perhaps a second one, and a label, separated by tabs."""

    record = TaskRecord(
        name="tsv",
        modality="text",
        num_classes=0,
        ood=("every further file", "or shifts of the test samples"),
        source="your own tab-separated files: tsv:TRAIN,TEST[,OOD][,text=COLUMN][,label=COLUMN][,header=no]",
        revision="hash of the content",
        licence="yours",
        note="without a header the last column is the label",
    )

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002
        """Return the task of the files."""
        check_options(spec, (*OPTIONS, "text", "pair", "label", "header"), where="--task")
        return assemble(spec, functools.partial(read_tsv, columns=spec.options))


def read_parquet(path: str, columns: Any) -> RawSplit:
    """Read one split; the columns are those the user named, or those with a usual name.

    Raises:
        UserError: If the file is no Parquet, or a column is missing or of the wrong type.
    """
    try:
        schema = pq.read_schema(path)
        names = schema.names
        label = find_column(path, names, columns.get("label"), LABEL_COLUMNS, "label")
        key = next((name for name in KEY_COLUMNS if name in names and name != label), None)
        table = pq.read_table(path, columns=[label, *([key] if key else [])])
        labels = _labels(path, table[label])
        keys = [
            str(name) if key else f"{row:08d}" for row, name in enumerate(table[key or label].to_pylist())
        ]
        class_names = _class_names(schema, label)
        image = columns.get("image") or next((name for name in IMAGE_COLUMNS if name in names), None)
        if image and not columns.get("text"):
            data = _ParquetImages(path, find_column(path, names, image, (), "image"))
            return RawSplit(keys, labels, class_names, "image", lambda codes: ImageBytes(keys, codes, data))
        texts = _texts(path, names, columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return RawSplit(keys, labels, class_names, "text", lambda codes: Texts(keys, codes, texts))


def _texts(path: str, names: Sequence[str], columns: Any) -> Sequence[str | tuple[str, ...]]:
    text = find_column(path, names, columns.get("text"), TEXT_COLUMNS, "image or text")
    pair = columns.get("pair") or next((name for name in PAIR_COLUMNS if name in names), None)
    wanted = [text, *([find_column(path, names, pair, (), "pair")] if pair else [])]
    table = pq.read_table(path, columns=wanted)
    for name in wanted:
        kind = table[name].type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"--task: column {name} of {path} is {kind}", possible="texts")
        if table[name].null_count:
            raise UserError(
                f"--task: {table[name].null_count} texts in column {name} of {path} are missing",
                mend="remove these rows",
            )
    parts = [table[name].to_pylist() for name in wanted]
    return list(zip(*parts, strict=True)) if pair else parts[0]


class _ParquetImages:
    """Images in a column of a Parquet file, read a row group at a time.

    Args:
        path: The file.
        column: A column of bytes, or of structs with a field ``bytes``.
    """

    def __init__(self, path: str, column: str) -> None:
        self.files = (Path(path),)
        self.layout = f"column {column}"
        self._file = pq.ParquetFile(path, memory_map=True)
        kind = self._file.schema_arrow.field(column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            self._leaf = f"{column}.bytes"
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            self._leaf = column
        else:
            raise UserError(
                f"--task: column {column} of {path} is {kind}", possible="binary, or a struct with bytes"
            )
        counts = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._ends = list(itertools.accumulate(counts))
        self._lock = threading.Lock()
        self._groups: dict[int, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        group = self._group(number)
        item = group[index - (self._ends[number - 1] if number else 0)].as_py()
        if item is None:
            raise UserError(
                f"--task: row {index} of {self.files[0]} has no image",
                mend="remove the row, or embed the image",
            )
        data: bytes = item
        return data

    def name(self, index: int) -> str:
        """Return the row and the file."""
        return f"in row {index} of {self.files[0]}"

    def _group(self, number: int) -> pa.ChunkedArray:
        # Samples are asked for about in order, by a few threads: the group before may still be in use.
        with self._lock:
            if number not in self._groups:
                while len(self._groups) >= GROUPS_IN_MEMORY:
                    del self._groups[next(iter(self._groups))]
                try:
                    column = self._file.read_row_group(number, columns=[self._leaf]).column(0)
                except (OSError, pa.ArrowException) as error:
                    raise unreadable(str(self.files[0]), error) from error
                if pa.types.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                self._groups[number] = column
            return self._groups[number]


def _labels(path: str, column: pa.ChunkedArray) -> list[Any]:
    if column.null_count:
        raise UserError(f"--task: {column.null_count} labels of {path} are empty", mend="remove these rows")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"--task: labels of {path} are {column.type}", possible="integers from 0, or strings")
    labels = column.to_pylist()
    if labels and isinstance(labels[0], int) and min(labels) < 0:
        raise UserError(
            f"--task: label {min(labels)} in {path}",
            possible="0 or more",
            mend="a label of -1 marks a hidden one; use a split with labels",
        )
    return labels


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face datasets leaves in a Parquet schema."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return None
    feature = json.loads(content).get("info", {}).get("features", {}).get(label, {})
    return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("names") else None


PARQUET = ParquetTask()
TSV = TsvTask()
