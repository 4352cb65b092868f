"""Sidecars: sets whose tars stay where somebody else keeps them.

A sidecar is a folder with all that makes a set but the tars. Its set.json names each of these by URL, size
and hash, so that levels are added, signed and read without a byte written beside the tars::

    SIDECAR/
      set.json           each shard with its url
      manifest.parquet index.arrow stats.json
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from nml.errors import UserError
from nml.set_file import local_folder, open_file_system
from nml.urls import access_error, with_secret
from shards.remote import RemoteStorage, copy_file
from shards.set_info import SetInfo, Shard
from shards.storage import SetStorage, check_size


class SidecarStorage:
    """The files of a sidecar, and the tars that it names.

    Args:
        beside: Where the sidecar itself lies.
        info: What its set.json says.
        cache: Folder that tars of other machines are kept in, as for :class:`RemoteStorage`.

    Raises:
        UserError: If a sidecar at a URL names files of this machine.
    """

    def __init__(self, beside: SetStorage, info: SetInfo, cache: str | Path | None = None) -> None:
        self.location = beside.location
        self._beside = beside
        self._urls = {shard.name: shard.url for shard in info.shards}
        here = [url for url in self._urls.values() if local_folder(url) is not None]
        if here and local_folder(beside.location) is None:
            raise UserError(
                f"{beside.location}: names files of this machine ({here[0]})",
                mend="copy the sidecar to a folder if it is yours to trust",
            )
        self._tars = RemoteStorage(next(iter(self._urls.values())).rpartition("/")[0], cache, self._urls)

    def read_small(self, name: str) -> bytes:
        """Return the bytes of a small file of the sidecar."""
        return self._beside.read_small(name)

    def bind(self, info: SetInfo) -> None:
        """Take note of what the files must hash to."""
        self._beside.bind(info)
        self._tars.bind(info)

    def check_sizes(self, shards: Iterable[Shard]) -> None:
        """Raise a UserError if a tar of this machine is missing or of another size."""
        for shard in shards:
            if (path := local_folder(shard.url)) is not None:
                check_size(path, shard)

    def local(self, name: str) -> Path:
        """Return a local path of a file, fetching it first if need be."""
        if name not in self._urls:
            return self._beside.local(name)
        return local_folder(self._urls[name]) or self._tars.local(name)


@contextlib.contextmanager
def tar_here(url: str, most: int | None = None) -> Iterator[Path]:
    """Give a path of a tar as it is now: where it lies, or a copy that is gone afterwards.

    Args:
        url: Where it is.
        most: The most bytes that it may have.

    Raises:
        UserError: If it cannot be fetched.
    """
    if (path := local_folder(url)) is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / url.rpartition("/")[2]
        with path.open("wb") as file:
            copy_file(url, file, most=most)
        yield path


def size_now(url: str) -> int | None:
    """Return the size of a tar; None if its server does not tell.

    Raises:
        UserError: If it is not there.
    """
    try:
        if (path := local_folder(url)) is not None:
            return path.stat().st_size
        size: int | None = open_file_system(url).size(with_secret(url))
        return size
    except UserError:
        raise
    except Exception as error:
        raise access_error(f"{url}: cannot be read", error, "check the URL and the network") from None
