"""Features of a set that is being planned, computed in runs of samples by any number of processes.

What the source holds is written down first; each run's features are then a file of their own, and the plan is
made when all are there. The images that pass through the encoder together are those of one process, so the
features are, too::

    WORK/
      encoding.json        what is planned, by which encoder; written when the catalogue is whole
      features-000000.npy  the features of a run of samples, then the SHA-256 of them
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import atomic_writer, json_bytes, sha256_file, write_bytes, write_json
from nml.sources import ByteRange, Cell, Place
from nml.stored_images import StoredImages
from nml.untrusted import Untrusted, check_object, parse_json
from shards.catalogue import CATALOGUE, HASHES, SPOOL, map_catalogue
from shards.features import BATCH, Encoder
from shards.plan_rows import Readable
from shards.request import WriteRequest

FEATURES = "features.npy"
MARK = "encoding.json"
# Batches of a run at least, and about how many runs there are at most, a file each.
_LEAST_BATCHES, _MOST_RUNS = 4, 4096
_FIELDS = {"request": dict, "encoder": dict, "files": dict, "samples": int, "run": int}
_DIGEST_BYTES = 32
_COPIED_AT_ONCE = 16 << 20


class WorkFiles(Readable, Protocol):
    """The files of unfinished work: made in a local folder, and read by every process of a write."""

    @property
    def shown(self) -> str:
        """What a message calls the set."""
        ...

    @property
    def work(self) -> Path:
        """The local folder."""
        ...

    def publish_work(self, name: str, *, keep: bool = False) -> None:
        """Let every process read a file of the local folder; ``keep`` it there as well."""
        ...

    def work_names(self) -> set[str]:
        """Return the names of the files that every process can read."""
        ...

    def remove_work(self, name: str) -> None:
        """Remove a file."""
        ...


class _Places(Sequence[Place]):
    """Where the images of a catalogue lie."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, sample: Any) -> Any:
        path, leaf, offset, size = (
            self._table[name][sample].as_py() for name in ("path", "leaf", "offset", "size")
        )
        return Cell(path, leaf, offset) if leaf else ByteRange(path, offset, size)


def begin(files: WorkFiles, request: WriteRequest, encoder: Encoder, *, by_parts: bool) -> dict[str, Any]:
    """Let every process compute features of a catalogue that is whole; return the mark of it.

    Args:
        files: The files of unfinished work, with the catalogue.
        request: What was asked.
        encoder: Computes them.
        by_parts: Whether others do, so that what they have done is kept whatever happens.
    """
    names = [name for name in (SPOOL, CATALOGUE, HASHES) if (files.work / name).exists()]
    samples = len(map_catalogue(files.work))
    stored = {
        "request": request.as_json(),
        "encoder": encoder.identity,
        "files": {
            name: [(files.work / name).stat().st_size, sha256_file(files.work / name)] for name in names
        },
        "samples": samples,
        "run": BATCH * max(_LEAST_BATCHES, -(-samples // (BATCH * _MOST_RUNS))),
        "by_parts": by_parts,
    }
    for name in names:
        files.publish_work(name, keep=True)
    write_json(files.work / MARK, stored)
    files.publish_work(MARK, keep=True)
    return stored


def is_of(mark: dict[str, Any], request: WriteRequest, encoder: Encoder) -> bool:
    """Whether this request and this encoder are what is being encoded."""
    return bool(mark["request"] == request.as_json()) and encoder.is_the_one(mark["encoder"])


def read_mark(files: Readable) -> dict[str, Any] | None:
    """Return what is being encoded; None if nothing is, or nothing tells what."""
    content = files.read_work(MARK)
    try:
        return None if content is None else check_object(parse_json(content), **_FIELDS)
    except Untrusted:
        return None


def brought(files: Readable, folder: Path, mark: dict[str, Any]) -> bool:
    """Bring the files of a catalogue to a folder that lacks them; return whether they are as written."""
    for name, (size, digest) in mark["files"].items():
        if not (folder / name).exists():
            with atomic_writer(folder / name) as file:
                for start in range(0, size, _COPIED_AT_ONCE):
                    file.write(files.read_work(name, start, min(start + _COPIED_AT_ONCE, size)) or b"")
        if sha256_file(folder / name) != digest:
            return False
    return True


def runs_of(mark: dict[str, Any]) -> int:
    """Return how many runs of samples there are."""
    return -(-int(mark["samples"]) // int(mark["run"]))


def encode_runs(
    files: WorkFiles, folder: Path, mark: dict[str, Any], encoder: Encoder, numbers: Sequence[int]
) -> int:
    """Compute the features of some runs that are not there; return of how many samples.

    Args:
        files: The files of unfinished work.
        folder: Where the catalogue is.
        mark: What is being encoded.
        encoder: Computes them.
        numbers: The runs.

    Raises:
        UserError: If an image cannot be read.
    """
    there = files.work_names()
    todo = [number for number in numbers if name_of(number) not in there or _run(files, mark, number) is None]
    each = mark["run"]
    runs = [range(number * each, min((number + 1) * each, mark["samples"])) for number in todo]
    samples = sum(map(len, runs))
    if not samples:
        return 0
    spool = (folder / SPOOL).open("rb") if SPOOL in mark["files"] else None
    with (
        spool or contextlib.nullcontext(),
        tqdm(desc="encoding", total=samples, unit=" samples", disable=not is_interactive()) as progress,
    ):
        images = StoredImages(_Places(map_catalogue(folder)), spool)
        for number, run in zip(todo, runs, strict=True):
            content = io.BytesIO()
            np.save(content, encoder.features(images.__getitem__, run, progress.update))
            data = content.getvalue()
            write_bytes(files.work / name_of(number), data + _digest(mark, data))
            files.publish_work(name_of(number))
    return samples


def gathered_features(files: WorkFiles, mark: dict[str, Any]) -> Path:
    """Return the features of every sample as one file, ``.npy`` float32 [N, D], made of the runs'.

    Raises:
        UserError: If a run is not there any more, or damaged.
    """
    path = files.work / FEATURES
    features: np.memmap[Any, Any] | None = None
    for number in range(runs_of(mark)):
        rows = _run(files, mark, number)
        if rows is None:
            raise UserError(f"{files.shown}: {name_of(number)} is gone or damaged", mend="plan it again")
        if features is None:
            features = np.lib.format.open_memmap(path, "w+", rows.dtype, (mark["samples"], rows.shape[1]))
        features[number * mark["run"] : number * mark["run"] + len(rows)] = rows
    if features is not None:
        features.flush()
    return path


def remove_runs(files: WorkFiles, mark: dict[str, Any]) -> None:
    """Remove what a plan that is made does not need any more."""
    for name in (MARK, *mark["files"], *map(name_of, range(runs_of(mark)))):
        if name != SPOOL:
            files.remove_work(name)


def name_of(number: int) -> str:
    """Return the file name of a run's features."""
    return f"features-{number:06d}.npy"


def is_run(name: str) -> bool:
    """Whether a file is that of a run's features."""
    return name.startswith("features-")


def _run(files: Readable, mark: dict[str, Any], number: int) -> Any:
    """Return a run's features; None if they are not there as they were written, or of another catalogue."""
    content = files.read_work(name_of(number))
    if content is None or _digest(mark, content[:-_DIGEST_BYTES]) != content[-_DIGEST_BYTES:]:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)


def _digest(mark: dict[str, Any], content: bytes) -> bytes:
    what = {name: value for name, value in mark.items() if name != "by_parts"}
    return hashlib.sha256(json_bytes(what) + content).digest()
