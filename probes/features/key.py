"""The key of features: a hash of everything they follow from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from probes.encoders.encoder import EncoderInfo
from probes.hashing import hash_keys, hash_value
from probes.samples import SampleSet

FORMAT = "nml-features/1"


class FeatureKey(NamedTuple):
    """What features follow from.

    Attributes:
        parts: The encoder's identity, the fingerprint of the samples, the hash of their keys in order,
            and the augmented view; JSON-like.
        names: What to call them in listings; no part of the key.
    """

    parts: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Folder name: 32 hex digits."""
        return hash_value(self.parts)[:32]


def feature_key(info: EncoderInfo, samples: SampleSet, *, view: int = 0, dataset: str = "") -> FeatureKey:
    """Return the key of the features of ``samples``.

    Args:
        info: What the encoder is made of.
        samples: What it reads.
        view: 0 for the samples as they are, n > 0 for the n-th augmented view.
        dataset: Name for listings.
    """
    return FeatureKey(
        parts={
            "format": FORMAT,
            "encoder": dict(info.identity),
            "encoder_hash": info.hash,
            "samples": samples.fingerprint,
            "keys": hash_keys(samples.keys),
            "count": len(samples.keys),
            "view": view,
            "dtype": "float32",
        },
        names={"encoder": info.name, "dataset": dataset},
    )
