"""set.json: what a shard set is, in one small file that is written last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nml.errors import UserError
from nml.levels import CLEAN_LEVEL, check_level_name, parse_ratio
from nml.set_file import DIGEST, SET_FORMAT, damaged, parse_set_record, record_digest
from nml.untrusted import Untrusted, file_name, sha256_text, shown, typed
from nml.urls import without_secret
from shards.ladder import Level, clean_level, level_column
from shards.noise import Kind

INDEX_FILE = "index.arrow"
STATS_FILE = "stats.json"
# Of one file; no chain of file systems, and nothing that a server would read as a question.
_PLAIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s?#]+")


@dataclass(frozen=True)
class Shard:
    """One tar of a set.

    Attributes:
        name: File name inside the set.
        samples: How many it holds.
        bytes: Its size.
        tree_sha256: Hash of its bytes with every image replaced by the image's own SHA-256,
            hexadecimal (:class:`shards.packing.TreeHash`).
        url: Where it lies, in a sidecar; empty for one beside set.json.
    """

    name: str
    samples: int
    bytes: int
    tree_sha256: str
    url: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what set.json stores."""
        return {name: value for name, value in asdict(self).items() if name != "url" or value}


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
        resized: How images were made smaller, and by which encoder; empty where they are as they came.
        forms: How many images came in a form that is not read as everybody would expect, by the form.
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
    resized: dict[str, Any] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what set.json stores."""
        stored = {name: value for name, value in asdict(self).items() if name not in ("levels", "shards")}
        for name in ("resized", "forms"):
            if not stored[name]:
                # Earlier versions do not know it.
                del stored[name]
        record = {
            **stored,
            "levels": {name: level.as_json() for name, level in self.levels.items()},
            "shards": [shard.as_json() for shard in self.shards],
        }
        return {"format": SET_FORMAT, **record, DIGEST: record_digest(record)}

    @property
    def is_sidecar(self) -> bool:
        """Whether the tars lie elsewhere, at the URLs that name them."""
        return any(shard.url for shard in self.shards)

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
        levels = {name: typed(Level, {"name": name, **level}) for name, level in stored.pop("levels").items()}
        shards = tuple(typed(Shard, shard) for shard in stored.pop("shards"))
        info = typed(SetInfo, {**stored, "classes": stored["classes"] or None, "levels": {}, "shards": ()})
        info = replace(info, levels=levels, shards=shards)
        _check(info)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(where, error) from error
    return info


def _check(info: SetInfo) -> None:
    """Refuse what would lead out of the set's folder, or to a sample or level that is not there."""
    for digest in (info.fingerprint, info.manifest_sha256, info.index_sha256):
        sha256_text(digest)
    for shard in info.shards:
        file_name(shard.name, ".tar")
        sha256_text(shard.tree_sha256)
        if shard.samples < 0 or shard.bytes < 0:
            raise Untrusted(f"{shard.name} has {shard.samples} samples in {shard.bytes} bytes")
    _check_urls(info.shards)
    if len({shard.name for shard in info.shards}) != len(info.shards):
        raise Untrusted("two of its shards have one name")
    if info.num_samples != sum(shard.samples for shard in info.shards):
        raise Untrusted(f"its shards do not hold {info.num_samples} samples")
    if info.classes and info.kind != "class":
        raise Untrusted(f"its kind is {info.kind}, and it has {len(info.classes)} classes")
    if info.resized and not isinstance(info.resized.get("short_side"), int):
        raise Untrusted(f"its images have a short side of {shown(info.resized.get('short_side'))}")
    if info.parent is not None and not {"fingerprint", "level"} <= info.parent.keys():
        raise Untrusted("its parent names no set and level")
    for level in info.levels.values():
        try:
            check_level_name(level.name, parse_ratio(level.asked, where="asked"), "level")
        except UserError as error:
            raise Untrusted(error.what) from error
        if level.column != level_column(info.kind, level.name):
            raise Untrusted(f"level {level.name} is in the column {shown(level.column)}")
    if info.primary not in info.all_levels():
        raise Untrusted(f"it has no level {shown(info.primary)}, which its shards would hold")


def _check_urls(shards: Iterable[Shard]) -> None:
    """Hold the URLs that a set.json names its tars by to their form.

    Raises:
        Untrusted: If one is none of a single file of the shard's name, or only some shards have one.
    """
    urls = {shard.url: shard for shard in shards}
    if "" in urls and len(urls) > 1:
        raise Untrusted("only some of its shards have a URL")
    for url, shard in urls.items():
        if url and not (_PLAIN.fullmatch(url) and url.endswith(f"/{shard.name}") and url == _kept(url)):
            raise Untrusted(f"{shown(url)} is no URL of {shard.name}")


def _kept(url: str) -> str:
    try:
        return without_secret(url)
    except UserError:
        return ""


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
