"""The folder of features, and an entry's key and life: claim chunks, write them, join them, read them."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, atomic_writer, make_folder, sha256_file, write_json
from nml.locking import byte_lock, is_free, look_again
from nml.untrusted import read_object
from probes.encoders.encoder import EncoderInfo
from probes.hashing import hash_keys, hash_value
from probes.samples import SampleSet

FORMAT = "nml-features/1"
DONE = "DONE.json"
KEY = "key.json"
LOCK = "lock"
ARRAY = "features.npy"
DEFAULT_FOLDER = Path("features")

# The lock byte of joining, far beyond any chunk.
_JOIN = 1 << 40


class FeatureKey(NamedTuple):
    """What features follow from.

    Attributes:
        parts: The encoder's identity, the fingerprint of the samples, the hash of their keys in order,
            and the augmented view; JSON-like.
        names: What to call them in listings; no part of the key.
    """

    parts: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Folder name: 32 hex digits."""
        return hash_value(self.parts)[:32]


def feature_key(info: EncoderInfo, samples: SampleSet, *, view: int = 0, dataset: str = "") -> FeatureKey:
    """Return the key of the features of ``samples``.

    Args:
        info: What the encoder is made of.
        samples: What it reads.
        view: 0 for the samples as they are, n > 0 for the n-th augmented view.
        dataset: Name for listings.
    """
    return FeatureKey(
        parts={
            "format": FORMAT,
            "encoder": dict(info.identity),
            "encoder_hash": info.hash,
            "samples": samples.fingerprint,
            "keys": hash_keys(samples.keys),
            "count": len(samples.keys),
            "view": view,
            "dtype": "float32",
        },
        names={"encoder": info.name, "dataset": dataset},
    )


class Features(NamedTuple):
    """Features as the store holds them.

    Attributes:
        key: Their digest.
        array: float32 [N, D], memory-mapped; changes to it never reach the file.
        seconds: Time all processes together spent on computing them.
    """

    key: str
    array: npt.NDArray[np.float32]
    seconds: float


class FeatureStore:
    """All features in a folder.

    Args:
        folder: The folder; made when first written to.
    """

    def __init__(self, folder: Path = DEFAULT_FOLDER) -> None:
        self.folder = folder

    def entry(self, key: FeatureKey) -> Entry:
        """Return the entry of ``key``, whether it exists yet or not."""
        return Entry(self.folder / key.digest, key)


class Entry:
    """One folder of the store.

    Args:
        folder: Its place.
        key: What its features follow from.
    """

    def __init__(self, folder: Path, key: FeatureKey) -> None:
        self.folder = folder
        self.key = key

    def open(self) -> Features | None:
        """Return the features, memory-mapped; None if they are not complete.

        Raises:
            UserError: If the file is not what was written.
        """
        try:
            done = read_object(self.folder / DONE, shape=list, seconds=float | int)
        except FileNotFoundError:
            return None
        path = self.folder / ARRAY
        try:
            # Copy-on-write: PyTorch warns of read-only memory, and nobody can change the file through this.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"features {path} cannot be read: {error}", mend=f"remove {self.folder}"
            ) from error
        if list(array.shape) != done["shape"] or array.dtype != np.float32:
            raise UserError(
                f"features {path} are {array.dtype} {list(array.shape)}",
                possible=f"float32 {done['shape']}, as written",
                mend=f"remove {self.folder} and run again",
            )
        with contextlib.suppress(OSError):
            # When it was last used, for gc. A store that may only be read is as good.
            os.utime(self.folder / LOCK)
        return Features(self.key.digest, array, float(done["seconds"]))

    def begin(self) -> None:
        """Make the folder and say in it what its features follow from."""
        make_folder(self.folder)
        if not (self.folder / KEY).exists():
            write_json(self.folder / KEY, {"parts": dict(self.key.parts), "names": dict(self.key.names)})

    @contextlib.contextmanager
    def claim(self, chunk: int, *, wait: bool) -> Iterator[bool]:
        """Hold chunk number ``chunk`` alone among all processes; a killed holder lets go.

        Yields:
            False if another process holds it and ``wait`` is False.
        """
        with byte_lock(self.folder / LOCK, chunk, wait=wait) as mine:
            if mine:
                look_again(self.folder)
            yield mine

    def chunk_path(self, chunk: int) -> Path:
        """Return where chunk number ``chunk`` lies until all are joined."""
        return self.folder / f"chunk-{chunk:06d}.npy"

    def has_chunk(self, chunk: int) -> bool:
        """Whether a chunk is computed, or already part of the joined array."""
        return self.chunk_path(chunk).exists() or (self.folder / DONE).exists()

    def write_chunk(self, chunk: int, features: npt.NDArray[np.float32], seconds: float) -> None:
        """Store one chunk [rows, D] and the time it took; whole or not at all."""
        with atomic_writer(self.chunk_path(chunk)) as file:
            np.save(file, features, allow_pickle=False)
            # After the array, where np.load does not look.
            file.write(np.float64(seconds).tobytes())

    def join(self, chunks: int) -> None:
        """Make one array of all chunks, then drop them. The first caller does it, the others wait for it."""
        with self.claim(_JOIN, wait=True):
            if not (self.folder / DONE).exists():
                self._join(chunks)
            for chunk in range(chunks):
                self.chunk_path(chunk).unlink(missing_ok=True)
            # Every chunk is there, so what bears a temporary name was left by a killed process.
            for leftover in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)

    def _join(self, chunks: int) -> None:
        shapes = [_shape(self.chunk_path(chunk)) for chunk in range(chunks)]
        dims = {shape[1] for shape in shapes}
        if len(dims) > 1:
            raise UserError(
                f"features of {self.key.names['encoder']} on {self.key.names['dataset']} have "
                f"{' and '.join(map(str, sorted(dims)))} dimensions in different chunks",
                mend=f"the encoder changed meanwhile; remove {self.folder} and run again",
            )
        shape = (sum(rows for rows, _ in shapes), dims.pop())
        if shape[0] != self.key.parts["count"]:
            raise UserError(
                f"features in {self.folder} have {shape[0]} rows for {self.key.parts['count']} samples",
                mend=f"another version of this project began them; remove {self.folder} and run again",
            )
        seconds = 0.0
        digest = hashlib.sha256()
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with atomic_writer(self.folder / ARRAY) as file:
            file.write(header.getvalue())
            digest.update(header.getvalue())
            for chunk in range(chunks):
                with self.chunk_path(chunk).open("rb") as part:
                    rows = memoryview(np.load(part, allow_pickle=False)).cast("B")
                    seconds += float(np.frombuffer(part.read(8), np.float64)[0])
                file.write(rows)
                digest.update(rows)
        write_json(
            self.folder / DONE,
            {
                "shape": list(shape),
                "sha256": digest.hexdigest(),
                "seconds": seconds,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )

    def dim(self, chunks: int) -> int | None:
        """Return D of the first chunk that is there; None if there is none."""
        for chunk in range(chunks):
            with contextlib.suppress(FileNotFoundError):
                return _shape(self.chunk_path(chunk))[1]
        return None


def remove_entry(folder: Path) -> None:
    """Delete an entry; the marker goes first, so that no half of it is ever taken for whole."""
    (folder / DONE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def is_whole(folder: Path) -> bool:
    """Whether the features of an entry are byte for byte what was written; true of an unfinished one."""
    try:
        done = read_object(folder / DONE, sha256=str)
        return bool(sha256_file(folder / ARRAY) == done["sha256"])
    except FileNotFoundError:
        return not (folder / DONE).exists()


def under_way(folder: Path) -> bool:
    """Whether some process computes part of the entry right now."""
    return not is_free(folder / LOCK)


def _shape(path: Path) -> tuple[int, int]:
    rows, dim = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return rows, dim


def read_key(folder: Path) -> dict[str, Any]:
    """Return what an entry's ``key.json`` says; empty if the entry is younger than that."""
    try:
        return read_object(folder / KEY, parts=dict, names=dict)
    except FileNotFoundError:
        return {}


def folder_bytes(folder: Path) -> int:
    """Return the bytes of an entry on disk."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
