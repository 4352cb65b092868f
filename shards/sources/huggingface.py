"""Hugging Face data sets: ``huggingface:NAME`` (fetched by the datasets library) or a saved folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml.errors import UserError, import_extra
from nml.sources import Example, Kind, SourceSpec
from shards.sources.columns import find_columns
from shards.sources.files import looks_held_out


class HuggingFaceSource:
    """A data set of the Hugging Face hub, or a folder that it saved; encoded images are taken as they are."""

    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_members()
        split = spec.split or spec.usual_split
        table = _load(spec, split)
        saved = str(table.split or "")
        if spec.split and saved and spec.split != saved and "[" not in spec.split + saved:
            raise UserError(
                f"{spec.flag('split')}{split}: {spec.text} was saved from another split", possible=saved
            )
        self._spec = spec
        self._columns = find_columns(spec, table.column_names)
        self._table = table if self._columns.texts else _undecoded(table, self._columns.image, spec)
        self.kind: Kind = self._columns.kind
        if self.kind == "caption" and len(table) and isinstance(table[0][self._columns.supervision], list):
            self.kind = "captions"
        names = getattr(table.features[self._columns.supervision], "names", None)
        self.classes = tuple(map(str, names)) if names and self.kind == "class" else None
        # A split saved alone keeps its name at most in its folder's.
        folder = Path(spec.argument).absolute()
        by_folder = folder.is_dir() and looks_held_out(str(folder))
        self.held_out = by_folder or looks_held_out(saved if saved and not spec.split else split)

    def __iter__(self) -> Iterator[Example]:
        columns = self._columns
        for number, row in enumerate(self._table):
            image = (row[columns.image] or {}) if columns.image else {}
            try:
                content = image.get("bytes") or self._read(image.get("path"), number)
            except UserError as error:
                self._spec.refuse(f"row {number}", "unreadable image", error)
                continue
            texts = tuple(row[name] for name in columns.texts)
            labels = {name: row[name] for name in (columns.supervision, *columns.more)}
            supervision = tuple(labels.values()) if columns.more else row[columns.supervision]
            lacking = next((name for name, value in labels.items() if value is None), None)
            if lacking or None in texts or (content is None and not texts):
                missing = lacking or ("text" if texts else "image")
                refused = f"{self._spec.shown}: row {number} has no {missing}"
                self._spec.refuse(
                    f"row {number}", f"no {missing}", UserError(refused, mend="filter it out of the data set")
                )
                continue
            name = str(row[columns.key]) if columns.key else self._spec.row_name(number)
            yield Example(name, supervision, content or b"", texts, row=number)

    def _read(self, path: str | None, number: int) -> bytes | None:
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise UserError(
                f"{self._spec.shown}: row {number} names the image {path}: {error.strerror}",
                mend="mend the file, or filter the row out of the data set",
            ) from error


def _load(spec: SourceSpec, split: str) -> Any:
    datasets = import_extra("datasets", "huggingface", spec.shown)
    name = spec.require_argument("data set", "huggingface:cifar10")
    try:
        if Path(name).is_dir() and (Path(name) / "dataset_info.json").exists():
            return datasets.load_from_disk(name)
        if Path(name).is_dir() and (Path(name) / "dataset_dict.json").exists():
            return datasets.load_from_disk(name)[split]
        return datasets.load_dataset(name, split=split)
    # The library raises errors of many kinds, its own and of the network below it.
    except Exception as error:
        raise UserError(
            f"{spec.shown}: split {split} cannot be loaded: {type(error).__name__}: {error}",
            mend="check the name, the split and the network",
        ) from error


def _undecoded(table: Any, column: str | None, spec: SourceSpec) -> Any:
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        raise UserError(
            f"{spec.shown}: column {column} holds no images",
            mend=f"name the image column: {spec.flag('image')}COLUMN",
        )
    return table.cast_column(column, datasets.Image(decode=False))
