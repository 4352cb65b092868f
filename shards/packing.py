"""Pack one shard: bytes from where they lie into a tar, with hashes and offsets noted on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from nml.errors import UserError
from nml.files import atomic_writer
from shards import tar
from shards.imagetype import image_extension

BUFFER = 8 << 20


class PackSample(NamedTuple):
    """One sample to pack.

    Attributes:
        key: Its unique name in the tar.
        path, offset, size: Where the image's bytes lie.
        supervision: Content of the ``.cls`` or ``.txt`` member.
        record: Content of the ``.json`` member.
    """

    key: str
    path: str
    offset: int
    size: int
    supervision: bytes
    record: dict[str, Any]


class PackedSample(NamedTuple):
    """Where a packed sample lies in its shard, and what it hashes to."""

    image_extension: str
    image_offset: int
    image_size: int
    supervision_offset: int
    supervision_size: int
    json_offset: int
    json_size: int
    sha256: bytes


@dataclass(frozen=True)
class PackedShard:
    """A written shard.

    Attributes:
        size: Bytes of the tar.
        sha256: Hash of the tar, hexadecimal.
        samples: One record a sample, in order.
    """

    size: int
    sha256: str
    samples: Sequence[PackedSample]


class ImageReader:
    """Read byte ranges, keeping the files that hold many images open."""

    LIMIT = 64

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read_into(self, target: memoryview, path: str, offset: int) -> None:
        """Fill ``target`` from ``offset`` of a file.

        Raises:
            UserError: If the file cannot be read, or ends early.
        """
        try:
            count = os.preadv(self._descriptor(path), [target], offset)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}",
                mend="mend the source and run the same command again; finished shards are kept",
            ) from error
        if count != len(target):
            raise UserError(
                f"{path}: has {count} bytes at offset {offset} where {len(target)} were found at first",
                mend="the source changed under the writer; start again with a new --out",
            )

    def _descriptor(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= self.LIMIT:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor


def pack_shard(path: Path, samples: Sequence[PackSample], supervision_extension: str) -> PackedShard:
    """Write the tar of ``samples`` to ``path``, whole or not at all.

    Args:
        path: Final name of the shard.
        samples: In the order they are written.
        supervision_extension: ``cls`` or ``txt``.

    Raises:
        UserError: If an image cannot be read or is of no known format.
    """
    digest = hashlib.sha256()
    packed = []
    position = 0
    with ImageReader() as reader, atomic_writer(path) as file:
        packer = _Packer(supervision_extension, reader)
        for sample in samples:
            if packer.full(sample):
                position += _flush(packer, file, digest)
            packed.append(packer.add(sample, position))
        position += _flush(packer, file, digest)
        closing = tar.end_of_archive(position)
        digest.update(closing)
        file.write(closing)
    return PackedShard(position + len(closing), digest.hexdigest(), packed)


def _flush(packer: _Packer, file: Any, digest: Any) -> int:
    block = packer.take()
    digest.update(block)
    file.write(block)
    return len(block)


class _Packer:
    """A buffer that samples are laid out in: images are read straight into their place."""

    def __init__(self, supervision_extension: str, reader: ImageReader) -> None:
        self._buffer = memoryview(bytearray(BUFFER))
        self._used = 0
        self._reader = reader
        self._ending = f".{supervision_extension}".encode()

    def full(self, sample: PackSample) -> bool:
        """Whether a sample might not fit; an image larger than the buffer gets a larger buffer."""
        need = sample.size + len(sample.supervision) + 6 * tar.BLOCK + _json_bound(sample.record)
        if need > len(self._buffer) and not self._used:
            self._buffer = memoryview(bytearray(need))
        return self._used > 0 and self._used + need > len(self._buffer)

    def take(self) -> memoryview:
        """Return what is laid out, and start anew; the view is valid until the next sample."""
        block = self._buffer[: self._used]
        self._used = 0
        return block

    def add(self, sample: PackSample, position: int) -> PackedSample:
        """Lay a sample out; ``position`` is where the buffer starts in the tar."""
        need = sample.size + len(sample.supervision) + 6 * tar.BLOCK + _json_bound(sample.record)
        if need > len(self._buffer):
            self._buffer = memoryview(bytearray(need))
        start = self._used + tar.BLOCK
        image = self._buffer[start : start + sample.size]
        self._reader.read_into(image, sample.path, sample.offset)
        extension = image_extension(image[:64])
        if extension is None:
            raise UserError(
                f"{sample.path}: sample {sample.key!r} is not an image of a known format",
                possible="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM",
                mend="remove it from the source",
            )
        key = sample.key.encode()
        self._put(tar.header(b"%b.%b" % (key, extension.encode()), sample.size))
        self._used += sample.size
        self._put(tar.padding(sample.size))
        content = json.dumps(sample.record, ensure_ascii=False, separators=(",", ":")).encode()
        supervision_offset = self._member(key + self._ending, sample.supervision)
        json_offset = self._member(key + b".json", content)
        return PackedSample(
            extension,
            position + start,
            sample.size,
            position + supervision_offset,
            len(sample.supervision),
            position + json_offset,
            len(content),
            hashlib.sha256(image).digest(),
        )

    def _member(self, name: bytes, content: bytes) -> int:
        self._put(tar.header(name, len(content)))
        offset = self._used
        self._put(content)
        self._put(tar.padding(len(content)))
        return offset

    def _put(self, data: bytes) -> None:
        self._buffer[self._used : self._used + len(data)] = data
        self._used += len(data)


def _json_bound(record: dict[str, Any]) -> int:
    """Return more bytes than the record's JSON takes: escapes make at most six bytes of a character."""
    return 64 + sum(
        len(name) + 32 + (6 * len(value) if isinstance(value, str) else 0) for name, value in record.items()
    )
