"""What a network makes of right and wrong labels, as whole numbers that add up exactly in any order.

Losses and similarities are counted in units of 2^-24, so that sums over steps, ranks and restarts do not
depend on who added what first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

UNIT = 1 << 24
# Larger losses count as this much: no sum of an epoch overflows 63 bits.
_MOST = 1e4
OF_CLASSES = (
    *("kept.samples", "kept.accuracy", "kept.loss"),
    *("flipped.samples", "flipped.given", "flipped.true", "flipped.loss"),
)
"""Kept labels: how many, predicted right, and their loss. Flipped ones: how many, predicted as the class that
was given, as the true one, and their loss. A loss is the cross-entropy of the softmax of the scores with the
given class, in nats."""
OF_PAIRS = ("kept.samples", "kept.similarity", "flipped.samples", "flipped.similarity")
"""Images and the captions that were given: how many are their own, how many others', and the cosines."""
_IN_UNITS = ("loss", "similarity")


def class_sums(scores: torch.Tensor, given: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the sums of :data:`OF_CLASSES`, int64 [7], on the device of the scores.

    Args:
        scores: Float32 [n, K].
        given: The classes that were trained on, int64 [n].
        truth: The clean classes, int64 [n].
    """
    best = scores.argmax(1)
    kept = given == truth
    right, loss = best == given, _units(torch.nn.functional.cross_entropy(scores, given, reduction="none"))
    flipped = ~kept
    return torch.stack(
        [
            kept.sum(),
            (kept & right).sum(),
            (loss * kept).sum(),
            flipped.sum(),
            (flipped & right).sum(),
            (flipped & (best == truth)).sum(),
            (loss * flipped).sum(),
        ]
    )


def pair_sums(images: torch.Tensor, texts: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return the sums of :data:`OF_PAIRS`, int64 [4], on the device of the features.

    Args:
        images, texts: Features of images and of the captions that were given, float32 [n, D].
        own: 1 where the caption is the image's own, 0 where it is another's, int64 [n].
    """
    similarity = _units(torch.nn.functional.cosine_similarity(images, texts))
    kept = own.bool()
    return torch.stack([kept.sum(), (similarity * kept).sum(), (~kept).sum(), (similarity * ~kept).sum()])


def _units(values: torch.Tensor) -> torch.Tensor:
    return (values.double().clamp(-_MOST, _MOST) * UNIT).round().long()


def means(sums: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Return what sums say of each group that has samples: ``kept`` and ``flipped``.

    Shares lie in [0, 1]; of flipped labels ``other`` is the share that is predicted as neither the given nor
    the true class.
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in sums.items():
        group, _, what = name.partition(".")
        samples = sums[f"{group}.samples"]
        if not samples:
            continue
        mean = value / samples / (UNIT if what in _IN_UNITS else 1)
        found.setdefault(group, {})[what] = samples if what == "samples" else mean
    flipped = found.get("flipped", {})
    if "true" in flipped:
        others = sums["flipped.samples"] - sums["flipped.given"] - sums["flipped.true"]
        flipped["other"] = others / sums["flipped.samples"]
    return found
