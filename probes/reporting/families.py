"""Encoders that differ in nothing but the noise of their pre-training (and its seed)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from probes.results import Row

_LEVEL = re.compile(r"(?<![a-z0-9])n\d{2}(p\d+)?(?![a-z0-9])")
_SEED = re.compile(r"(?<![a-z0-9])seed\d+(?![a-z0-9])")
_STEP = re.compile(r"@.*$")


def families(rows: Iterable[Row]) -> dict[str, str]:
    """Return the family of each encoder hash.

    Runs are named ``recipe-level-seed`` by default: names that differ in level and seed only make a
    family. An encoder whose name makes it the only level of its family was named by hand; all such
    encoders of one objective and feature dimension are taken together. Encoders of unknown noise
    are families of their own.
    """
    encoders = {row.encoder_hash: row for row in rows}
    stems = {key: _stem(row) for key, row in encoders.items()}
    levels: dict[str, set[float]] = defaultdict(set)
    for key, row in encoders.items():
        if row.noise_ratio is not None:
            levels[stems[key]].add(row.noise_ratio)
    found: dict[str, str] = {}
    for key, row in encoders.items():
        if row.noise_ratio is None or len(levels[stems[key]]) > 1:
            found[key] = stems[key]
        else:
            found[key] = f"{row.objective or row.encoder_kind}, D = {row.dim}"
    return _unjoined(found, stems, encoders)


def repetition(encoder: str) -> str | None:
    """Return the part of an encoder's name that tells its pre-training seed, for example ``seed0``."""
    found = _SEED.search(_STEP.sub("", encoder))
    return found.group() if found else None


def _stem(row: Row) -> str:
    if row.noise_ratio is None:
        return row.encoder
    name = _SEED.sub("", _LEVEL.sub("", _STEP.sub("", row.encoder)))
    return re.sub(r"[-_]{2,}", "-", name).strip("-_") or row.encoder


def _unjoined(found: dict[str, str], stems: dict[str, str], encoders: dict[str, Row]) -> dict[str, str]:
    """Give an encoder that no other level joined its own stem back: it reads better."""
    members: dict[str, set[float | None]] = defaultdict(set)
    for key, family in found.items():
        members[family].add(encoders[key].noise_ratio)
    return {key: family if len(members[family]) > 1 else stems[key] for key, family in found.items()}
