"""A cache of planar YUV beside a set: its images shrunk and decoded, read without entropy decoding.

For the images of each shard there is a file of planes, in the order of the samples, and a table of them::

    SET.yuv256/
      planes-000000.bin   the planes of the images of shard-000000.tar, one after another
      planes-000000.rows  a row an image: where it lies, its size, its full size, its CRC-32
      cache.json          which set it was made of, by what, and the SHA-256 of each table; written last

It is a copy that can be made again: a set without it reads as before, and it is never part of a set.
"""

from __future__ import annotations

import hashlib
import zlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.set_file import local_folder
from nml.untrusted import Untrusted, read_object
from shards.decode import ImageSize
from shards.open_files import OpenFiles
from shards.reader import OPEN_SHARDS, DamagedSample
from shards.shardset import ShardSet
from shards.yuv import Planes, planes_from, planes_size

CACHE_FILE = "cache.json"
FORMAT = "nml-yuv/1"
ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("full_width", "<u4"),
        ("full_height", "<u4"),
        ("crc32", "<u4"),
    ]
)
"""A row of the table of a file of planes."""


def cache_folder(set_path: str, side: int) -> Path:
    """Return where the cache of a set lies.

    Raises:
        UserError: If the set lies at a URL, beside which there is nothing.
    """
    folder = local_folder(set_path)
    if folder is None:
        raise UserError(
            f"{set_path}: a cache of decoded images lies beside a set in a folder", mend="copy the set to one"
        )
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.yuv{side}")


def planes_name(shard: int) -> str:
    """Return the file name of a shard's planes."""
    return f"planes-{shard:06d}.bin"


def rows_name(shard: int) -> str:
    """Return the file name of the table of a shard's planes."""
    return f"planes-{shard:06d}.rows"


class YuvCache:
    """The planes of a set's images; safe to use from several threads, and in forked or spawned workers.

    Args:
        shard_set: The set.
        side: The short side that images were shrunk to.

    Raises:
        UserError: If there is no cache, it is of another set or state of it, or it is damaged.
    """

    def __init__(self, shard_set: ShardSet, side: int) -> None:
        self.folder = cache_folder(shard_set.path, side)
        self._set = shard_set
        self._mend = f"python -m shards.cache {shard_set.path} --size {side}"
        self._first = [0, *accumulate(shard.samples for shard in shard_set.info.shards)]
        self._stored = self._read(side)
        self._files = OpenFiles(OPEN_SHARDS, self.folder.joinpath)
        self._rows: dict[int, npt.NDArray[Any]] = {}

    def _read(self, side: int) -> list[dict[str, Any]]:
        try:
            stored = read_object(
                self.folder / CACHE_FILE, format=str, fingerprint=str, short_side=int, shards=list
            )
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: there is no cache", mend=f"make it: {self._mend}") from error
        except (OSError, Untrusted) as error:
            raise self._damaged(str(error)) from error
        found = (stored["format"], stored["fingerprint"], stored["short_side"])
        if found != (FORMAT, self._set.fingerprint, side):
            raise UserError(
                f"{self.folder}: is the cache of another set, or of another state of this one",
                mend=f"remove it, and make it again: {self._mend}",
            )
        shards: list[dict[str, Any]] = stored["shards"]
        try:
            sizes = [(self.folder / planes_name(n)).stat().st_size for n in range(len(shards))]
            if sizes != [shard["bytes"] for shard in shards] or len(shards) != len(self._set.info.shards):
                raise Untrusted("files are missing, or of another size")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        return shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}}

    def planes(self, sample: int, shard: int, key: str) -> Planes:
        """Return a sample's planes.

        Args:
            sample: Its number in the set.
            shard: The number of its shard.
            key: Its key, for an error.

        Raises:
            DamagedSample: If they are not what was written.
            UserError: If the table of the shard is not.
        """
        row = self._table(shard)[sample - self._first[shard]]
        size = ImageSize(int(row["width"]), int(row["height"]))
        content = bytearray(planes_size(*size))
        name = planes_name(shard)
        try:
            count = self._files[name].read_into(content, int(row["offset"]))
        except OSError as error:
            raise DamagedSample(key, f"{self.folder}/{name}", str(error.strerror)) from error
        if count != len(content) or zlib.crc32(content) != row["crc32"]:
            raise DamagedSample(key, f"{self.folder}/{name}", "the planes are not what was written")
        return planes_from(content, size, ImageSize(int(row["full_width"]), int(row["full_height"])))

    def _table(self, shard: int) -> npt.NDArray[Any]:
        rows = self._rows.get(shard)
        if rows is None:
            try:
                content = (self.folder / rows_name(shard)).read_bytes()
                if hashlib.sha256(content).hexdigest() != self._stored[shard]["rows_sha256"]:
                    raise ValueError(f"{rows_name(shard)} is not what was written")
                rows = np.frombuffer(content, ROW)
                if len(rows) != self._set.info.shards[shard].samples:
                    raise ValueError(f"{rows_name(shard)} has {len(rows)} rows")
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise self._damaged(str(error)) from error
            self._rows[shard] = rows
        return rows

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.folder}: damaged: {what}", mend=f"remove it, and make it again: {self._mend}"
        )
