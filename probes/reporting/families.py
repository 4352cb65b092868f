"""Encoders that differ in nothing but the noise of their pre-training (and its seed)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from probes.results import Row
from probes.results.row import TUNED

_LEVEL = re.compile(r"(?<![a-z0-9])n\d{2}(p\d+)?(?![a-z0-9])")
_SEED = re.compile(r"(?<![a-z0-9])seed\d+(?![a-z0-9])")
_USUAL_MODELS = ("symmetric", "caption-swap")
# Up to the layer of the encoder, where its name has one.
_STEP = re.compile(r"@[^,]*")
_LAYER = re.compile(r",layer=[^,]*$")


def families(rows: Iterable[Row]) -> dict[str, str]:
    """Return the family of each encoder hash.

    Runs are named ``recipe-level-seed`` by default: names that differ in level and seed only make a
    family. An encoder whose name makes it the only level of its family was named by hand; all such
    encoders of one objective and feature dimension are taken together. Encoders of unknown noise
    are families of their own, and so are those of each noise model where there are several: 20 % of one
    are not 20 % of another. Tuned encoders are, too: several may be of one pre-training run, and differ in
    more than its noise.
    """
    encoders = {row.encoder_hash: row for row in rows}
    stems = {key: _stem(row) for key, row in encoders.items()}
    levels: dict[str, set[float]] = defaultdict(set)
    for key, row in encoders.items():
        if row.noise_ratio is not None:
            levels[stems[key]].add(row.noise_ratio)
    found: dict[str, str] = {}
    for key, row in encoders.items():
        if _alone(row) or len(levels[stems[key]]) > 1:
            found[key] = stems[key]
        else:
            found[key] = f"{row.objective or row.encoder_kind}, D = {row.dim}{layer_of(row.encoder)}"
    return _by_model(_unjoined(found, stems, encoders), encoders)


def repetition(encoder: str) -> str | None:
    """Return the part of an encoder's name that tells its pre-training seed, for example ``seed0``."""
    found = _SEED.search(_STEP.sub("", encoder))
    return found.group() if found else None


def layer_of(encoder: str) -> str:
    """Return the part of an encoder's name that tells its layer; empty for an encoder's own features."""
    found = _LAYER.search(encoder)
    return found.group() if found else ""


def _alone(row: Row) -> bool:
    return row.noise_ratio is None or row.encoder_kind == TUNED


def _stem(row: Row) -> str:
    layer = layer_of(row.encoder)
    if _alone(row):
        return row.encoder
    name = _STEP.sub("", row.encoder).removesuffix(layer)
    if row.noise_level:
        # A level that its user named, as a run's name has it.
        name = re.sub(rf"(?<![A-Za-z0-9]){re.escape(row.noise_level)}(?![A-Za-z0-9])", "", name)
    name = _SEED.sub("", _LEVEL.sub("", name))
    name = re.sub(r"[-_]{2,}", "-", name).strip("-_")
    return name + layer if name else row.encoder


def _by_model(found: dict[str, str], encoders: dict[str, Row]) -> dict[str, str]:
    """Part families of several noise models; clean encoders stay with the usual one, else with the first."""
    models: dict[str, set[str]] = defaultdict(set)
    for key, family in found.items():
        if encoders[key].noise_ratio:
            models[family].add(encoders[key].noise_model or "")
    parted = dict(found)
    for key, family in found.items():
        if len(models[family]) > 1:
            usual = min(models[family], key=lambda model: (model not in _USUAL_MODELS, model))
            model = encoders[key].noise_model if encoders[key].noise_ratio else usual
            parted[key] = f"{family}, {model}"
    return parted


def _unjoined(found: dict[str, str], stems: dict[str, str], encoders: dict[str, Row]) -> dict[str, str]:
    """Give an encoder that no other level joined its own stem back: it reads better."""
    members: dict[str, set[float | None]] = defaultdict(set)
    for key, family in found.items():
        members[family].add(encoders[key].noise_ratio)
    return {key: family if len(members[family]) > 1 else stems[key] for key, family in found.items()}
