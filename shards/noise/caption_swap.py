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
        pairs = _pair_up(order, population.texts[order], max(counts, default=0) + 1)
        return [_level(pairs, count, population.texts) for count in counts]


def _enough_for_two(samples: int) -> str:
    """Say which ratio alters two samples; of two samples, 1 would, which is none."""
    ratio = f"{min(2 / samples, 0.9):.4g}"
    if exact_count(Fraction(ratio), samples) < 2:
        return "take a source with more samples"
    return f"choose a ratio of at least {ratio}"


def _pair_up(order: Integers, texts: Hashes, count: int) -> Integers:
    """Return at least ``count`` samples (or all) so that positions 2i and 2i + 1 differ in text.

    A sample pairs with the latest one that waits for another text than its own. Where neighbours
    differ nobody waits, and blocks of them are paired at once.

    Args:
        order: The samples, int64 [N].
        texts: Hash of the caption of each sample of ``order``, uint64 [N].
        count: How many are needed, at least 1.
    """
    paired: list[Integers] = []
    # All that wait have one text, else two of them would have met.
    waiting: list[tuple[int, int]] = []
    position = done = 0
    block = _SHORT
    while position < len(order) and done < count:
        ready = 0 if waiting else _distinct_neighbours(texts[position : position + block])
        if ready:
            paired.append(order[position : position + ready])
            block = min(2 * block, _LONG) if ready == block else _SHORT
        else:
            end = position + _SHORT
            met, ready = _meet(waiting, order[position:end].tolist(), texts[position:end].tolist())
            paired.append(np.array(met, np.int64))
        position += ready
        done += len(paired[-1])
    if done < count:
        paired.append(np.array([row for row, _ in waiting], np.int64))
    return np.concatenate(paired)


def _distinct_neighbours(texts: Hashes) -> int:
    """Return the length, even, of the longest start in which positions 2i and 2i + 1 differ."""
    pairs = texts[: len(texts) // 2 * 2].reshape(-1, 2)
    equal = pairs[:, 0] == pairs[:, 1]
    return 2 * (int(np.argmax(equal)) if equal.any() else len(pairs))


def _meet(waiting: list[tuple[int, int]], rows: Sequence[int], texts: Sequence[int]) -> tuple[list[int], int]:
    """Let ``rows`` meet who waits, one by one until nobody does; return the pairs and how many came.

    Args:
        waiting: Samples and their text; changed.
        rows: Samples that come, with their ``texts``.
        texts: See ``rows``.
    """
    met: list[int] = []
    came = 0
    for row, text in zip(rows, texts, strict=True):
        came += 1
        if waiting and waiting[-1][1] != text:
            met += (waiting.pop()[0], row)
            if not waiting:
                break
        else:
            waiting.append((row, text))
    return met, came


def _level(pairs: Integers, count: int, texts: Hashes) -> Flips:
    """Swap within the first ``count`` samples of ``pairs``."""
    even = count - count % 2
    rows = pairs[:even]
    values = rows.reshape(-1, 2)[:, ::-1].reshape(-1).copy()
    if count % 2:
        first, second = rows[-2:]
        third = _third(pairs[even : even + 2], first, second, texts)
        # first still gets second's caption, as at every higher level.
        values[-1] = third
        rows = np.append(rows, third)
        values = np.append(values, first)
    return Flips(rows, values)


def _third(candidates: Integers, first: int, second: int, texts: Hashes) -> int:
    """Choose who joins a pair: preferably one whose text differs from both."""
    for row in candidates:
        if texts[row] not in (texts[first], texts[second]):
            return int(row)
    return int(candidates[0])
