"""Hashes of everything that features and results follow from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def hash_value(value: Any) -> str:
    """Return the hex SHA-256 of a JSON-like value; equal values give equal hashes, in any key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_keys(keys: Iterable[str]) -> str:
    """Return the hex SHA-256 of sample keys in their order."""
    digest = hashlib.sha256()
    for key in keys:
        encoded = key.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()


def hash_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the hex SHA-256 of named arrays: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def rank_by_hash(keys: Iterable[str], salt: str) -> npt.NDArray[np.int64]:
    """Return the order of ``keys`` by a salted hash: random to look at, the same on every machine.

    Returns:
        Positions int64 [N], the smallest hash first.
    """
    seed = salt.encode()
    hashes = [hashlib.blake2b(key.encode(), digest_size=16, key=_key(seed)).digest() for key in keys]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)


def _key(seed: bytes) -> bytes:
    # blake2b takes keys of at most 64 bytes; a longer salt is hashed to fit.
    return seed if len(seed) <= 64 else hashlib.sha256(seed).digest()
