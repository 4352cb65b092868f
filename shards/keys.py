"""Sample keys: unique names of [A-Za-z0-9_-] that every tar reader agrees on.

WebDataset splits a member's name at its first dot and groups members by what stands before it, so
a dot in a key would tear a sample apart, and two equal keys would merge two samples into one.
"""

from __future__ import annotations

import hashlib
import re

# 100 bytes is what a plain tar header holds; the longest ending is ".json".
MAX_LENGTH = 80

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_WITH_EXTENSION = re.compile(r"(.*[^/])\.[A-Za-z]{3,4}", re.DOTALL)


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
