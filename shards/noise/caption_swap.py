"""Caption swap: disjoint pairs of samples exchange their captions until the ratio is met.

The paper, appendix A.1, for YFCC15M. Every caption is still used once, and no sample keeps its
own. A pair with the same text would be no noise, so samples pair up with the next one of another
text; only when one text is all that is left do equal texts meet, and then ``text_changed`` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np

from nml.errors import UserError
from shards.hashing import Hashes
from shards.noise import Flips, Integers, Kind, Population, exact_count, refuse_model_file

# Samples looked at together: few after two equal texts, many where all differ.
_SHORT = 256
_LONG = 1 << 20
# Where one text is that of most, thousands may wait for another.
_LOOKED_AT = 64


class CaptionSwap:
    """Exactly round(r N) samples with another sample's caption, nested over the ratios.

    An odd count ends in a ring of three instead of a pair. That leaves the altered samples nested,
    but two of them carry another wrong caption than they do at a higher level.
    """

    kind: ClassVar[Kind] = "caption"
    nested: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        refuse_model_file("caption-swap", model_file)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Let the first k samples of one sequence of pairs exchange captions."""
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        if 1 in counts:
            raise UserError(
                f"--noise {float(ratios[counts.index(1)]):g}: one of {len(population)} samples cannot swap "
                "its caption alone",
                mend=_enough_for_two(len(population)),
            )
        order = population.order(seed, "select")
        # One more than the largest count: an odd level borrows the sample after its last pair.
        owners = None if population.owners is None else population.owners[order]
        more = 1 if owners is None else _LOOKED_AT
        pairs = _pair_up(order, population.texts[order], max(counts, default=0) + more, owners)
        return [_level(pairs, count, population) for count in counts]


def _enough_for_two(samples: int) -> str:
    """Say which ratio alters two samples; of two samples, 1 would, which is none."""
    ratio = f"{min(2 / samples, 0.9):.4g}"
    if exact_count(Fraction(ratio), samples) < 2:
        return "take a source with more samples"
    return f"choose a ratio of at least {ratio}"


def _pair_up(order: Integers, texts: Hashes, count: int, owners: Integers | None = None) -> Integers:
    """Return at least ``count`` samples (or all) so that positions 2i and 2i + 1 differ in text.

    A sample pairs with the latest one that waits for another text than its own. Where neighbours
    differ nobody waits, and blocks of them are paired at once. Captions of one image never pair: each would
    be as right as before.

    Args:
        order: The samples, int64 [N].
        texts: Hash of the caption of each sample of ``order``, uint64 [N].
        count: How many are needed, at least 1.
        owners: Image of each caption of ``order``, int64 [N]; None where each has its own.
    """
    paired: list[Integers] = []
    # Of one caption an image, all that wait have one text, else two of them would have met.
    looked_at = 1 if owners is None else _LOOKED_AT
    owners = np.arange(len(order), dtype=np.int64) if owners is None else owners
    waiting: list[tuple[int, int, int]] = []
    position = done = 0
    block = _SHORT
    while position < len(order) and done < count:
        ahead = slice(position, position + block)
        ready = 0 if waiting else _distinct_neighbours(texts[ahead], owners[ahead])
        if ready:
            paired.append(order[position : position + ready])
            block = min(2 * block, _LONG) if ready == block else _SHORT
        else:
            end = position + _SHORT
            coming = (each[position:end].tolist() for each in (order, texts, owners))
            met, ready = _meet(waiting, list(zip(*coming, strict=True)), looked_at)
            paired.append(np.array(met, np.int64))
        position += ready
        done += len(paired[-1])
    if done < count:
        paired.append(np.array([row for row, *_ in waiting], np.int64))
    return np.concatenate(paired)


def _distinct_neighbours(texts: Hashes, owners: Integers) -> int:
    """Return the length, even, of the longest start in which positions 2i and 2i + 1 differ."""
    even = len(texts) // 2 * 2
    pairs, images = texts[:even].reshape(-1, 2), owners[:even].reshape(-1, 2)
    equal = (pairs[:, 0] == pairs[:, 1]) | (images[:, 0] == images[:, 1])
    return 2 * (int(np.argmax(equal)) if equal.any() else len(pairs))


def _meet(
    waiting: list[tuple[int, int, int]], coming: Sequence[tuple[int, int, int]], looked_at: int
) -> tuple[list[int], int]:
    """Let those who come meet who waits, one by one until nobody does; return the pairs and how many came.

    Args:
        waiting: Samples with their text and image; changed.
        coming: As ``waiting``.
        looked_at: How many of the last that wait are looked at.
    """
    met: list[int] = []
    came = 0
    for row, text, owner in coming:
        came += 1
        place = _partner(waiting, text, owner, looked_at)
        if place is None:
            waiting.append((row, text, owner))
        else:
            met += (waiting.pop(place)[0], row)
            if not waiting:
                break
    return met, came


def _partner(waiting: Sequence[tuple[int, int, int]], text: int, owner: int, looked_at: int) -> int | None:
    """Return the place of the latest that waits, of the last few, for another text and image."""
    for place in range(len(waiting) - 1, max(len(waiting) - 1 - looked_at, -1), -1):
        _, other_text, other_owner = waiting[place]
        if other_text != text and other_owner != owner:
            return place
    return None


def _level(pairs: Integers, count: int, population: Population) -> Flips:
    """Swap within the first ``count`` samples of ``pairs``."""
    even = count - count % 2
    rows = pairs[:even]
    values = rows.reshape(-1, 2)[:, ::-1].reshape(-1).copy()
    if count % 2:
        first, second = rows[-2:]
        third = _third(pairs[even : even + _LOOKED_AT], first, second, population)
        # first still gets second's caption, as at every higher level.
        values[-1] = third
        rows = np.append(rows, third)
        values = np.append(values, first)
    return Flips(rows, values)


def _third(candidates: Integers, first: int, second: int, population: Population) -> int:
    """Choose who joins a pair: preferably one of the next two whose text differs from both.

    Of several captions an image, one of the next few whose image differs, too.
    """
    texts, owners = population.texts, population.owners
    for row in candidates[: 2 if owners is None else None]:
        same_image = owners is not None and owners[row] in (owners[first], owners[second])
        if texts[row] not in (texts[first], texts[second]) and not same_image:
            return int(row)
    return int(candidates[0])
