"""What is decided of a study before any head is fitted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from probes.downstream_noise import SYMMETRIC, identity_of
from probes.encoders.encoder import Encoder
from probes.hashing import hash_value
from probes.heads import HeadChoice
from probes.splits import Carving

RULE = "best validation metric, the first of equals"
FLIPS = "exact in each fraction and in the validation data"


def study_of(
    choice: HeadChoice,
    carving: Carving,
    views: int,
    noise: Fraction,
    model: str = SYMMETRIC,
    texts: Mapping[str, Any] | None = None,
) -> str:
    """Return the JSON of what is decided before any fit; it is part of the id of every result.

    Args:
        choice: The head and its candidates.
        carving: The task's training samples divided.
        views: Augmented views of the training data.
        noise: Downstream label noise.
        model: Its noise model.
        texts: What class text embeddings follow from, see :func:`texts_of`.
    """
    return as_json(
        {
            "candidates": [dict(candidate) for candidate in choice.candidates],
            "rule": RULE,
            "validation_carved": len(carving.validation),
            "views": views,
            # Only with noise: results without it do not depend on how labels are flipped, and keep their ids.
            **({"flips": FLIPS} if noise else {}),
            **({"noise_model": identity_of(model)} if noise and model != SYMMETRIC else {}),
            **({"texts": dict(texts)} if texts and choice.asks_for_texts else {}),
        }
    )


def texts_of(heads: Sequence[HeadChoice], encoder: Encoder, classes: Sequence[str]) -> dict[str, Any] | None:
    """Return what the class text embeddings of an encoder follow from; None where no head asks for them."""
    if not any(choice.asks_for_texts for choice in heads):
        return None
    texts: Mapping[str, Any] = encoder.texts  # type: ignore[attr-defined]
    return {**texts, "classes": hash_value(list(classes))[:16]}


def as_json(value: Any) -> str:
    """Return the one JSON text of a value."""
    return json.dumps(value, sort_keys=True, default=str)
