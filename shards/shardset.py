"""Open a finished shard set: what it is, its levels, and its memory-mapped index."""

from __future__ import annotations

from functools import cached_property
from numbers import Rational
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.levels import find_level
from nml.set_file import MANIFEST_FILE, SET_FILE, SIGNATURE_FILE
from nml.signatures import BadSignature, check_signed_bytes, unsigned
from shards.index_table import IndexTable
from shards.ladder import Level
from shards.noise import Kind
from shards.set_info import INDEX_FILE, SetInfo, parse_set_info
from shards.sidecar import SidecarStorage
from shards.storage import SetStorage, open_storage


class ShardSet:
    """A finished shard set, opened for reading. Cheap to open, to pickle and to share with workers.

    Attributes:
        storage: Where its files are read from: a folder, or a URL with a cache.
        info: What set.json says.
    """

    def __init__(self, storage: SetStorage, info: SetInfo) -> None:
        self.storage = storage
        self.info = info

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        cache: str | Path | None = None,
        signed_by: str | Path | None = None,
    ) -> ShardSet:
        """Open the set in a local folder or at an fsspec URL.

        Args:
            path: The folder or URL.
            cache: Where shards of a remote set are kept; default is below ``~/.cache``.
            signed_by: Public key that its set.json must be signed with; what is then read is held to that.

        Raises:
            UserError: If there is no finished set, a shard is missing or of another size, or it is not
                signed by the key.
        """
        storage = open_storage(str(path), cache)
        text = storage.read_small(SET_FILE)
        info = parse_set_info(text, f"{storage.location}/{SET_FILE}")
        if info.is_sidecar:
            storage = SidecarStorage(storage, info, cache)
        if signed_by is not None:
            _check_signature(storage, text, info, signed_by)
        storage.bind(info)
        storage.check_sizes(info.shards)
        return cls(storage, info)

    @property
    def path(self) -> str:
        """Where the set lies, as it was opened, without a password or signature."""
        return self.storage.location

    @property
    def num_samples(self) -> int:
        """N."""
        return self.info.num_samples

    @property
    def kind(self) -> Kind:
        """``class`` or ``caption``."""
        return self.info.kind

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in index order; None for captions."""
        return self.info.classes

    @property
    def fingerprint(self) -> str:
        """Identity of the samples and their clean supervision; adding a level keeps it."""
        return self.info.fingerprint

    @property
    def manifest_sha256(self) -> str:
        """Hash of the manifest; adding a level changes it."""
        return self.info.manifest_sha256

    @property
    def manifest_path(self) -> Path:
        """Local path of the manifest."""
        return self.storage.local(MANIFEST_FILE)

    @property
    def levels(self) -> dict[str, Level]:
        """Every level by name, clean (``n00``) first."""
        return self.info.all_levels()

    def level(self, noise: str | float | Rational, *, strict: bool = True) -> Level:
        """Return the level of a noise ratio, or of a level's name such as ``n20``.

        Args:
            noise: The ratio or the name.
            strict: Whether a ratio that several levels have is refused; else it is that named by it.

        Raises:
            UserError: If the set has no such level, or several; the message names those there and the mend.
        """
        ratios = {name: level.asked for name, level in self.levels.items()}
        return self.levels[find_level(noise, ratios, self.path, location=self.path, strict=strict)]

    @cached_property
    def index(self) -> IndexTable:
        """The memory-mapped index.

        Raises:
            UserError: If it belongs to another set.
        """
        return IndexTable(self.storage.local(INDEX_FILE), self.info)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map does not travel to another process; it is opened again there.
        return {name: value for name, value in self.__dict__.items() if name != "index"}


def _check_signature(storage: SetStorage, text: bytes, info: SetInfo, key: str | Path) -> None:
    try:
        signature = storage.read_small(SIGNATURE_FILE)
    except UserError:
        raise unsigned(storage.location, SIGNATURE_FILE) from None
    check_signed_bytes(text, SET_FILE, signature, key, storage.location)
    if not info.index_digests:
        raise BadSignature(
            f"{storage.location}: {SET_FILE} is signed, but of a version that does not hold the index to it",
            mend="check a copy with python -m shards.verify SET --key KEY, and read that",
        )
