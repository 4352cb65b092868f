"""Published sets as torchvision keeps them on disk, written as the files of a prepared task."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import atomic_writer
from probes.hashing import rank_by_hash

# Images of a row group: what is held decompressed when the file is read.
GROUP_ROWS = 256
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """A class of ``torchvision.datasets`` and how its splits are named.

    Attributes:
        name: Name of the class.
        splits: Arguments of the class for each part: ``train``, ``test``, perhaps ``validation``.
        train_per_class: Where torchvision has no split: training images of each class, the rest is test;
            0 where it has one. Which images is decided by the hash of their position.
    """

    name: str
    splits: Mapping[str, Mapping[str, Any]]
    train_per_class: int = 0

    def write(self, path: Path, part: str, root: Path) -> dict[str, Any]:
        """Write one part as Parquet, whole or not at all; return what to record of its source.

        Images that torchvision reads from files are copied byte by byte where its class allows it, and
        stored as PNG where it hands out pixels.

        Raises:
            UserError: If the data is not in ``root`` and cannot be downloaded.
        """
        data = self._open(part, root)
        rows = self._rows(data, part)
        schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=_class_names(data))
        with (
            atomic_writer(path) as file,
            pq.ParquetWriter(file, schema) as writer,
            tqdm(
                total=len(rows), unit="images", desc=path.stem, disable=not is_interactive(), leave=False
            ) as progress,
        ):
            for start in range(0, len(rows), GROUP_ROWS):
                batch = [data[int(row)] for row in rows[start : start + GROUP_ROWS]]
                images = [{"bytes": _encoded(image), "path": None} for image, _ in batch]
                writer.write_table(pa.table([images, [int(label) for _, label in batch]], schema=schema))
                progress.update(len(batch))
        return {
            "source": f"torchvision.datasets.{self.name}",
            "arguments": dict(self.splits[part]),
            "revision": f"torchvision-{metadata.version('torchvision')}",
        }

    def _open(self, part: str, root: Path) -> Any:
        from torchvision import datasets

        make = getattr(datasets, self.name)
        arguments = dict(self.splits[part])
        if "loader" in inspect.signature(make).parameters:
            arguments["loader"] = _read_bytes
        failures = []
        # First what is there: asked to download, some classes look at every archive again.
        for download in (False, True):
            try:
                return make(root=str(root), download=download, **arguments)
            # Missing files, dead links, broken archives, missing libraries: each class has its own errors.
            except Exception as error:
                failures.append(" ".join(str(error).split())[:160])
        raise UserError(
            f"torchvision.datasets.{self.name} is not in {root} ({failures[0]}), nor could it be downloaded "
            f"({failures[1]})",
            mend="name the folder of torchvision's downloads: --torchvision FOLDER",
        )

    def _rows(self, data: Any, part: str) -> npt.NDArray[np.int64]:
        if not self.train_per_class:
            return np.arange(len(data))
        labels = np.array(_labels(data), dtype=np.int64)
        order = rank_by_hash(map(str, range(len(labels))), f"nml-torchvision/1 {self.name}")
        chosen = [order[labels[order] == label][: self.train_per_class] for label in np.unique(labels)]
        train = np.sort(np.concatenate(chosen))
        return train if part == "train" else np.setdiff1d(np.arange(len(labels)), train)


def _labels(data: Any) -> Any:
    return data.targets if hasattr(data, "targets") else data.y


def _class_names(data: Any) -> dict[str, str] | None:
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if names is None:
        return None
    feature = {"names": [str(name) for name in names], "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}


def _read_bytes(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
