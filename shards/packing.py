"""Pack one shard: bytes from where they lie into a tar, with hashes and offsets noted on the way."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

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
    record: bytes


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
        digest: Tree hash of the tar, hexadecimal (see :class:`TreeHash`).
        samples: One record a sample, in order.
    """

    size: int
    digest: str
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
    packed = []
    with ImageReader() as reader, atomic_writer(path) as file:
        packer = _Packer(supervision_extension, reader)
        for sample in samples:
            if packer.full(sample):
                file.write(packer.take())
            packed.append(packer.add(sample))
        file.write(packer.take())
        file.write(packer.close())
        return PackedShard(file.tell(), packer.tree.hexdigest(), packed)


class TreeHash:
    """A hash of a whole tar that hashes no image byte a second time.

    SHA-256 over the tar's bytes, with the content of every image replaced by its own SHA-256. The
    image hashes are needed anyway, and hashing everything twice would cost as much as all the rest
    of packing.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def plain(self, content: bytes | memoryview) -> None:
        """Add bytes that belong to no image."""
        self._digest.update(content)

    def image(self, sha256: bytes) -> None:
        """Add an image by its hash."""
        self._digest.update(sha256)

    def hexdigest(self) -> str:
        """Return the hash so far, hexadecimal."""
        return self._digest.hexdigest()


class _Packer:
    """A buffer that samples are laid out in: images are read straight into their place."""

    def __init__(self, supervision_extension: str, reader: ImageReader) -> None:
        self.tree = TreeHash()
        self._buffer = memoryview(bytearray(BUFFER))
        self._used = 0
        self._flushed = 0
        self._reader = reader
        self._ending = f".{supervision_extension}".encode()

    def full(self, sample: PackSample) -> bool:
        """Whether what is laid out must be taken before ``sample``."""
        return self._used > 0 and self._used + _room(sample) > len(self._buffer)

    def take(self) -> memoryview:
        """Return what is laid out, and start anew; the view is valid until the next sample."""
        block = self._buffer[: self._used]
        self._flushed += self._used
        self._used = 0
        return block

    def close(self) -> bytes:
        """Return what closes the tar, once everything is taken."""
        closing = tar.end_of_archive(self._flushed)
        self.tree.plain(closing)
        return closing

    def add(self, sample: PackSample) -> PackedSample:
        """Lay a sample out after those before it."""
        if _room(sample) > len(self._buffer):
            self._buffer = memoryview(bytearray(_room(sample)))
        begin = self._used
        start = begin + tar.BLOCK
        image = self._buffer[start : start + sample.size]
        self._reader.read_into(image, sample.path, sample.offset)
        extension = image_extension(image[:16])
        if extension is None:
            raise UserError(
                f"{sample.path}: sample {sample.key!r} is not an image of a known format",
                possible="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM",
                mend="remove it from the source",
            )
        sha256 = hashlib.sha256(image).digest()
        key = sample.key.encode()
        self._put(tar.header(b"%b.%b" % (key, extension.encode()), sample.size))
        self.tree.plain(self._buffer[begin:start])
        self.tree.image(sha256)
        self._used = end = start + sample.size
        self._put(tar.padding(sample.size))
        supervision_offset = self._member(key + self._ending, sample.supervision)
        json_offset = self._member(key + b".json", sample.record)
        self.tree.plain(self._buffer[end : self._used])
        return PackedSample(
            extension,
            self._flushed + start,
            sample.size,
            self._flushed + supervision_offset,
            len(sample.supervision),
            self._flushed + json_offset,
            len(sample.record),
            sha256,
        )

    def _member(self, name: bytes, content: bytes) -> int:
        self._put(tar.header(name, len(content)) + content + tar.padding(len(content)))
        return self._used - tar.stored(len(content)) + tar.BLOCK

    def _put(self, data: bytes) -> None:
        self._buffer[self._used : self._used + len(data)] = data
        self._used += len(data)


def _room(sample: PackSample) -> int:
    """Return more bytes than a sample takes in the tar."""
    return sample.size + len(sample.supervision) + len(sample.record) + 6 * tar.BLOCK
