"""Sample keys, and keyed hashes of them: the only randomness a noise plan or a sample order ever uses.

Keys are unique names of [A-Za-z0-9_-] that every tar reader agrees on. WebDataset splits a member's name at
its first dot and groups members by what stands before it, so a dot in a key would tear a sample apart, and
two equal keys would merge two samples into one.

Random streams of libraries change between versions and depend on how many numbers were drawn
before. A hash of (seed, purpose, key) does not: it is the same in any order, worker or machine.

A key is hashed once (BLAKE2b, 64 bits); every purpose then mixes a salt of its own into that hash
with splitmix64's finaliser, a bijection that vectorises. VERSION changes if any of this does, and
is recorded in every set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

VERSION = "blake2b-splitmix64/1"

Hashes = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1

# 100 bytes is what a plain tar header holds; the longest ending is ".json".
MAX_LENGTH = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_WITH_EXTENSION = re.compile(r"(.*[^/])\.[A-Za-z]{3,4}", re.DOTALL)


def hash_keys(keys: Iterable[str]) -> Hashes:
    """Return the 64-bit hash of each key, uint64 [N]."""
    blake2b = hashlib.blake2b
    return np.frombuffer(
        b"".join([blake2b(key.encode(), digest_size=8).digest() for key in keys]), dtype="<u8"
    ).astype(np.uint64)


def salt(seed: int, purpose: str) -> int:
    """Return the 64-bit salt of one purpose under one seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(hashes: Hashes, seed: int, purpose: str) -> Hashes:
    """Return fresh 64-bit hashes for one purpose, uint64 [N]: a bijection of ``hashes`` for each salt."""
    mixed = hashes ^ np.uint64(salt(seed, purpose))
    mixed += np.uint64(_GOLDEN)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_MIX_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MIX_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def mix_one(value: int, seed: int, purpose: str) -> int:
    """Return what :func:`mix` gives for one value, in plain integers."""
    mixed = ((value ^ salt(seed, purpose)) + _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK
    return mixed ^ (mixed >> 31)


def uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Map hashes to the open interval (0, 1), float64 [N]: 53 bits, never 0 and never 1."""
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def key_of(name: str) -> str:
    """Make a key from a sample's name in its source.

    ``n01440764/n01440764_10026.JPEG`` gives ``n01440764_n01440764_10026``. A name too long, or with
    nothing to keep, ends in a hash of itself.
    """
    if len(name) <= MAX_LENGTH and _SAFE.fullmatch(name):
        return name
    match = _WITH_EXTENSION.fullmatch(name)
    key = _UNSAFE.sub("_", match[1] if match else name).strip("_")
    if not key or len(key) > MAX_LENGTH:
        return with_hash(key, name)
    return key


def with_hash(key: str, name: str) -> str:
    """Make a key unique with a hash of the name it came from."""
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f"{key[: MAX_LENGTH - len(digest) - 1]}-{digest}".lstrip("-")
