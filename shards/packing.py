"""Pack one shard: bytes from where they lie into a tar, with hashes and offsets noted on the way."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from nml.errors import UserError
from nml.files import atomic_writer
from nml.image_forms import unusual_forms
from nml.images import BadImage, image_extension
from shards import tar
from shards.open_files import OpenFiles
from shards.resize import Resize

BUFFER = 4 << 20

# Columns of the manifest that packing fills in.
PLACE_COLUMNS = (
    "image_extension",
    "image_offset",
    "image_size",
    "supervision_offset",
    "supervision_size",
    "json_offset",
    "json_size",
    "sha256",
)


# One more where images were made smaller.
ORIGINAL_SHA256 = "original_sha256"


class Samples(NamedTuple):
    """What a shard is packed from, a list a field: tuples a sample would cost more than their tar headers.

    Attributes:
        keys: Unique names in the tar.
        paths, offsets, sizes: Where the images' bytes lie; an empty path is the file given with them.
        supervision: Contents of the ``.cls`` or ``.txt`` members.
        records: Contents of the ``.json`` members.
    """

    keys: Sequence[str]
    paths: Sequence[str]
    offsets: Sequence[int]
    sizes: Sequence[int]
    supervision: Sequence[bytes]
    records: Sequence[bytes]


class PackedShard(NamedTuple):
    """A written shard.

    Attributes:
        size: Bytes of the tar.
        digest: Tree hash of the tar, hexadecimal (see :class:`TreeHash`).
        columns: Where each sample lies and what it hashes to, as columns of the manifest.
        forms: How many images came in a form that is not read as everybody would expect, by the form.
    """

    size: int
    digest: str
    columns: dict[str, list[Any]]
    forms: dict[str, int]


class ImageReader:
    """Read byte ranges, keeping the files that hold many images open.

    Args:
        staging: Folder of the plan, which a message says to remove when the source must change.
        unnamed: The file that is meant by an empty path.
    """

    LIMIT = 64

    def __init__(self, staging: Path, unnamed: IO[bytes] | None = None) -> None:
        self._unnamed = unnamed
        self.restart = f"remove {staging} and run the same command again to plan without it"
        self._files = OpenFiles(self.LIMIT, str)

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read_into(self, target: memoryview, path: str, offset: int) -> None:
        """Fill ``target`` from ``offset`` of a file.

        Raises:
            UserError: If the file cannot be read, or ends early.
        """
        try:
            if path or self._unnamed is None:
                count = self._files[path].read_into(target, offset)
            else:
                count = os.preadv(self._unnamed.fileno(), [target], offset)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}",
                mend="mend the source and run the same command again, finished shards are kept; "
                f"if the image is gone for good, {self.restart}",
            ) from error
        if count != len(target):
            raise UserError(
                f"{path}: has {count} bytes at offset {offset} where {len(target)} were found at first",
                mend="the source changed under the writer; start again with a new --out",
            )


def pack_shard(
    path: Path,
    samples: Samples,
    supervision_extension: str,
    unnamed: IO[bytes] | None = None,
    *,
    resize: Resize | None = None,
) -> PackedShard:
    """Write the tar of ``samples``, in their order, to ``path``, whole or not at all.

    Args:
        path: Final name of the shard.
        samples: What to pack.
        supervision_extension: ``cls`` or ``txt``.
        unnamed: The file of images without a path.
        resize: How images are made smaller; None to copy them as they are.

    Raises:
        UserError: If an image cannot be read or is of no known format.
    """
    with ImageReader(path.parent, unnamed) as reader, atomic_writer(path) as file:
        packer = _Packer(file, supervision_extension, reader, resize)
        for sample in zip(*samples, strict=True):
            packer.add(*sample)
        return packer.close()


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
    """A buffer that samples are laid out in: images are read straight into their place and hashed there."""

    def __init__(
        self, file: IO[bytes], supervision_extension: str, reader: ImageReader, resize: Resize | None
    ) -> None:
        self._file = file
        self._resize = resize
        self._originals: list[bytes] = []
        self._forms: Counter[str] = Counter()
        self._ending = f".{supervision_extension}".encode()
        self._reader = reader
        self._tree = TreeHash()
        self._buffer = memoryview(bytearray(BUFFER))
        self._used = 0
        self._written = 0
        self._places: list[tuple[Any, ...]] = []

    def add(self, key: str, path: str, offset: int, size: int, supervision: bytes, record: bytes) -> None:
        """Lay a sample out after those before it."""
        smaller = None if self._resize is None else self._smaller(self._resize, key, path, offset, size)
        size = size if smaller is None else len(smaller)
        name = key.encode()
        text = tar.member(name + self._ending, supervision)
        after = tar.padding(size) + text + tar.member(name + b".json", record)
        begin = self._reserve(tar.BLOCK + size + len(after))
        start = begin + tar.BLOCK
        end = start + size
        image = self._buffer[start:end]
        if smaller is None:
            self._reader.read_into(image, path, offset)
            if self._resize is None:
                self._forms.update(unusual_forms(image))
        else:
            image[:] = smaller
        extension = image_extension(image[:16])
        if extension is None:
            raise UserError(
                f"{path}: sample {key!r} is not an image of a known format",
                possible="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM",
                mend=f"remove it from the source, then {self._reader.restart}",
            )
        # While the bytes are in the processor's cache.
        sha256 = hashlib.sha256(image).digest()
        before = tar.header(name + b"." + extension.encode(), size)
        self._buffer[begin:start] = before
        self._buffer[end : self._used] = after
        self._tree.plain(before)
        self._tree.image(sha256)
        self._tree.plain(after)
        place = self._written + start
        text_place = place + size + -size % tar.BLOCK + tar.BLOCK
        record_place = text_place - tar.BLOCK + len(text) + tar.BLOCK
        self._places.append(
            (extension, place, size, text_place, len(supervision), record_place, len(record), sha256)
        )

    def close(self) -> PackedShard:
        """Write what is laid out and what closes the tar."""
        self._flush()
        closing = tar.end_of_archive(self._written)
        self._tree.plain(closing)
        self._file.write(closing)
        columns = dict(zip(PLACE_COLUMNS, map(list, zip(*self._places, strict=True)), strict=True))
        if self._resize is not None:
            columns[ORIGINAL_SHA256] = self._originals
        return PackedShard(self._written + len(closing), self._tree.hexdigest(), columns, dict(self._forms))

    def _smaller(self, resize: Resize, key: str, path: str, offset: int, size: int) -> bytes | None:
        """Return an image made smaller, None if it stays as it is; note the hash of what it was."""
        original = bytearray(size)
        self._reader.read_into(memoryview(original), path, offset)
        self._originals.append(hashlib.sha256(original).digest())
        self._forms.update(unusual_forms(memoryview(original)))
        try:
            return resize.smaller(bytes(original))
        except BadImage as error:
            raise UserError(
                f"{path}: sample {key!r} cannot be decoded: {error}",
                mend="the source changed under the writer; start again with a new --out",
            ) from error

    def _reserve(self, size: int) -> int:
        """Return where the next ``size`` bytes of the buffer begin, writing what was there if need be."""
        if self._used + size > len(self._buffer):
            self._flush()
            if size > len(self._buffer):
                self._buffer = memoryview(bytearray(size))
        begin = self._used
        self._used += size
        return begin

    def _flush(self) -> None:
        self._file.write(self._buffer[: self._used])
        self._written += self._used
        self._used = 0
