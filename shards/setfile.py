"""set.json: what a shard set is, in one small file that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from nml.levels import CLEAN_LEVEL
from nml.set_file import DIGEST, SET_FORMAT, damaged, parse_set_record, record_digest
from shards.ladder import Level, clean_level
from shards.noise import Kind

INDEX_FILE = "index.arrow"
STATS_FILE = "stats.json"


@dataclass(frozen=True)
class Shard:
    """One tar of a set.

    Attributes:
        name: File name inside the set.
        samples: How many it holds.
        bytes: Its size.
        tree_sha256: Hash of its bytes with every image replaced by the image's own SHA-256,
            hexadecimal (:class:`shards.packing.TreeHash`).
    """

    name: str
    samples: int
    bytes: int
    tree_sha256: str


@dataclass(frozen=True, kw_only=True)
class SetInfo:
    """The content of set.json.

    Attributes:
        kind: ``class`` or ``caption``.
        source: The source as it was typed.
        num_samples: N.
        classes: Class names in index order; None for captions.
        seed: Seed of the first levels and of the order of the samples.
        fingerprint: Identity of the samples and their clean supervision; adding a level keeps it.
        manifest_sha256: Hash of manifest.parquet; adding a level changes it.
        index_sha256: Hash of index.arrow.
        index_digests: Hash of each column of each record batch of index.arrow, which readers check
            before they use it; empty in sets written by versions that did not have it.
        levels: Noisy levels by name; clean is always there and not listed.
        shards: The tars, in order.
        primary: Level that the ``.cls`` or ``.txt`` members hold.
        request: What was asked of the writer, so that the same command finds its work done.
        parent: Fingerprint and level of the set these samples came from, if they came from one.
        held_out: Whether the samples are a validation or test split, which noise must not touch.
    """

    kind: Kind
    source: str
    num_samples: int
    classes: tuple[str, ...] | None
    seed: int
    fingerprint: str
    manifest_sha256: str
    index_sha256: str
    levels: dict[str, Level]
    shards: tuple[Shard, ...]
    primary: str = CLEAN_LEVEL
    request: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, str] | None = None
    index_digests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what set.json stores."""
        stored = {name: value for name, value in asdict(self).items() if name not in ("levels", "shards")}
        record = {
            **stored,
            "levels": {name: level.as_json() for name, level in self.levels.items()},
            "shards": [asdict(shard) for shard in self.shards],
        }
        return {"format": SET_FORMAT, **record, DIGEST: record_digest(record)}

    def all_levels(self) -> dict[str, Level]:
        """Return the levels by name, clean first."""
        return {CLEAN_LEVEL: clean_level(self.kind), **self.levels}


def parse_set_info(text: bytes, where: str) -> SetInfo:
    """Read set.json's content.

    Raises:
        UserError: If it is not of a format known here, or damaged.
    """
    stored = parse_set_record(text, where)
    try:
        levels = {name: Level(name=name, **level) for name, level in stored.pop("levels").items()}
        shards = tuple(Shard(**shard) for shard in stored.pop("shards"))
        classes = stored.pop("classes")
        digests = {name: tuple(hashes) for name, hashes in stored.pop("index_digests", {}).items()}
        return SetInfo(
            levels=levels,
            shards=shards,
            classes=tuple(classes) if classes else None,
            index_digests=digests,
            **stored,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(where, error) from error


def fingerprint(
    kind: Kind, classes: Iterable[str] | None, shards: Iterable[Shard], supervision: bytes
) -> str:
    """Return the identity of a set: its shards and its clean supervision, hexadecimal.

    Args:
        kind: ``class`` or ``caption``.
        classes: Class names in index order.
        shards: The tars, in order.
        supervision: Hash of the clean supervision of every sample, in order.
    """
    digest = hashlib.sha256(f"{SET_FORMAT}\0{kind}\0".encode())
    digest.update(json.dumps(list(classes) if classes is not None else None).encode())
    for shard in shards:
        digest.update(f"\0{shard.name}\0{shard.samples}\0{shard.bytes}\0{shard.tree_sha256}".encode())
    digest.update(supervision)
    return digest.hexdigest()
