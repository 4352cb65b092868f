"""Features that the user computed elsewhere: ``features:train=FILE,test=FILE,ood.noisy=FILE``.

A file is ``.npy`` [N, D], ``.safetensors`` with one tensor [N, D] (or one named ``features``), or
``.parquet`` with a list column ``features``; its rows follow the order of the task's samples.
``ood.noisy`` is the variant ``noisy`` of whatever task is probed, ``cifar10-noisy`` that of one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.files import sha256_file
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.samples import Content
from probes.spec import Spec

# What names the file of a variant, whatever the task is called.
OOD = "ood."
# Rows that are looked at in one go.
ROWS = 65536


def open_features(spec: Spec, settings: Settings) -> Encoder:  # noqa: ARG001 - the registry's signature
    """Return the encoder that looks features up in files.

    Raises:
        UserError: If no file is named for ``train`` or ``test``, or two for one split, or one cannot be read.
    """
    parts = dict(spec.options)
    for argument in spec.arguments:
        # A split's name may hold a dash, and then it is no option to the parser.
        name, equals, path = argument.partition("=")
        if not equals:
            raise UserError(
                f"--encoder {spec.text}: {argument}", possible="SPLIT=FILE, for example train=a.npy"
            )
        if name == OOD:
            raise UserError(f"--encoder {spec.text}: {argument} names no variant", possible=f"{OOD}NAME=FILE")
        if name in parts:
            raise UserError(f"--encoder {spec.text}: {name}= is given twice", possible="one file")
        parts[name] = path
    missing = [name for name in ("train", "test") if name not in parts]
    if missing:
        raise UserError(
            f"--encoder {spec.text}: no file for {' and '.join(missing)}",
            possible="features:train=FILE,test=FILE",
        )
    arrays = {name: read_features(Path(path), f"--encoder {spec.text}:") for name, path in parts.items()}
    dims = {name: array.shape[1] for name, array in arrays.items()}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise UserError(f"--encoder {spec.text}: dimensions differ: {found}", possible="one D for all files")
    hashes = {name: sha256_file(Path(path)) for name, path in parts.items()}
    info = EncoderInfo(
        name=spec.text,
        kind="features",
        modality="any",
        identity={"library": "files", "files": hashes},
    )
    return FileEncoder(info, arrays)


class FileEncoder:
    """Features by split and row.

    Args:
        info: The hashes of the files.
        arrays: Features [N, D] by split or evaluation name.
    """

    batch_size = 4096

    def __init__(self, info: EncoderInfo, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self.info = info
        self.arrays = arrays

    def of_task(self, task: str) -> FileEncoder:
        """Return the encoder with the names that the parts of a task have in results: ``digits-noisy``.

        Raises:
            UserError: If a variant has two files.
        """
        named = {name: f"{task}-{name.removeprefix(OOD)}" for name in self.arrays if name.startswith(OOD)}
        twice = next((name for name, full in named.items() if full in self.arrays), None)
        if twice is not None:
            raise UserError(
                f"--encoder {self.info.name}: {twice} and {named[twice]} are one variant of {task}",
                mend="name one file for it",
            )
        return FileEncoder(self.info, {named.get(name, name): array for name, array in self.arrays.items()})

    def prepare(self, content: Content) -> Any:  # noqa: ARG002 - the protocol's signature
        """Refuse: features are looked up, samples are not read."""
        raise UserError(
            f"encoder {self.info.name} has no features for these samples", mend="views need a model"
        )

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Refuse, as :meth:`prepare`."""
        raise UserError(f"encoder {self.info.name} has no features for these samples")

    def look_up(self, split: str, count: int) -> npt.NDArray[np.float32] | None:
        """Return the features of a split, ``train`` of ``cifar10 train``; None if no file is named for it.

        Raises:
            UserError: If the file has another number of rows than the split.
        """
        array = self.arrays.get(split)
        array = self.arrays.get(split.rpartition(" ")[2]) if array is None else array
        if array is not None and len(array) != count:
            raise UserError(
                f"--encoder {self.info.name}: {split} has {len(array)} rows, the task {count} samples",
                mend="compute the features of exactly these samples, in the task's order",
            )
        return array


def read_features(path: Path, where: str) -> npt.NDArray[np.float32]:
    """Return the features [N, D] of a file.

    Args:
        path: The file.
        where: What a message begins with: the option that named the file.

    Raises:
        UserError: If it cannot be read, holds something else, or a value that is not finite.
    """
    try:
        array = _READERS[path.suffix](path)
    except KeyError as error:
        raise UserError(f"{where} {path}", possible=f"files with {', '.join(_READERS)}") from error
    except Exception as error:
        what = "no such file" if not path.exists() else f"cannot be read: {error}"
        raise UserError(f"{where} {path}: {what}", possible="features [N, D]") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{where} {path} holds several arrays", possible="one array of features [N, D]")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"{where} {path} holds {array.dtype} {list(array.shape)}", possible="floats [N, D]")
    # float32 in this order stays in its file; other numbers are converted, in memory.
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(array, dtype=np.float32)
    parts = [features[row : row + ROWS] for row in range(0, len(features), ROWS)]
    finite = [np.isfinite(part).all(axis=1) for part in parts]
    bad = np.flatnonzero(~np.concatenate([np.empty(0, bool), *finite]))
    if len(bad):
        raise UserError(
            f"{where} row {bad[0]} of {path} is not finite in float32 ({len(bad)} of {len(features)} rows)",
            mend="repair the features",
        )
    return features


def _read_npy(path: Path) -> npt.NDArray[Any]:
    # Not "r": torch warns of arrays that cannot be written to. What is written to this one stays in memory.
    array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _read_safetensors(path: Path) -> npt.NDArray[Any]:
    from safetensors.numpy import load_file

    tensors = load_file(path)
    if "features" not in tensors and len(tensors) != 1:
        raise ValueError(f"{len(tensors)} tensors and none named 'features'")
    return tensors.get("features", next(iter(tensors.values())))


def _read_parquet(path: Path) -> npt.NDArray[Any]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["features"])["features"].combine_chunks()
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"rows of {' and '.join(map(str, lengths)) or 'no'} values")
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, lengths[0])


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
