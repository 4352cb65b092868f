"""Noise plans, quotas and orders once more, sample by sample, from what their documentation says.

Nothing here calls the code that the tests hold to it: not even the hash. Slow, and only for small sets.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np

Pairs = list[tuple[int, int]]
_MASK = 2**64 - 1


def word(value: int, seed: int, purpose: str) -> int:
    """Return 64 random bits keyed by (seed, purpose, value): splitmix64 of the salted value."""
    salt = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    bits = ((value ^ int.from_bytes(salt, "little")) + 0x9E3779B97F4A7C15) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK
    return bits ^ (bits >> 31)


def unit(bits: int) -> float:
    return ((bits >> 11) + 0.5) / 2**53


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def turns(weights: Sequence[int], count: int, ties: Sequence[int]) -> list[int]:
    """Share out picks: pick j of a class comes once its share has passed j, and before it passes j + 1."""
    total, taken, picks = sum(weights), [0] * len(weights), []
    for step in range(1, count + 1):
        due = []
        for number, weight in enumerate(weights):
            j = taken[number]
            if weight and j * total < step * weight:
                due.append((math.ceil((j + 1) * total / weight), ties[number], number))
        chosen = min(due)[-1]
        taken[chosen] += 1
        picks.append(chosen)
    return picks


def members_in_turn(
    hashes: Sequence[int], labels: Sequence[int], picks: Sequence[int], seed: int
) -> list[int]:
    """Return the samples picked: within a class those with the smallest "select" word first."""
    queues: dict[int, list[int]] = {}
    for row in sorted(range(len(hashes)), key=lambda row: word(hashes[row], seed, "select"), reverse=True):
        queues.setdefault(labels[row], []).append(row)
    return [queues[label].pop() for label in picks]


def class_ties(classes: int, seed: int, purpose: str = "class turn") -> list[int]:
    return [word(number, seed, purpose) for number in range(classes)]


def symmetric(hashes: Sequence[int], labels: Sequence[int], classes: int, count: int, seed: int) -> Pairs:
    sizes = [labels.count(number) for number in range(classes)]
    rows = members_in_turn(hashes, labels, turns(sizes, count, class_ties(classes, seed)), seed)
    pairs = []
    for row in rows:
        others = [(labels[row] + step) % classes for step in range(1, classes)]
        pairs.append((row, others[word(hashes[row], seed, "target") % len(others)]))
    return pairs


def pair_flip(
    hashes: Sequence[int], labels: Sequence[int], targets: dict[int, int], classes: int, count: int, seed: int
) -> Pairs:
    sizes = [labels.count(number) if number in targets else 0 for number in range(classes)]
    rows = members_in_turn(hashes, labels, turns(sizes, count, class_ties(classes, seed)), seed)
    return [(row, targets[labels[row]]) for row in rows]


def parts(weights: Sequence[float]) -> list[int]:
    """Return weights as integers of 2**30 parts in all, none that is positive at 0."""
    return [max(round(weight / sum(weights) * 2**30), 1) if weight else 0 for weight in weights]


def transition_matrix(
    hashes: Sequence[int], labels: Sequence[int], matrix: Sequence[Sequence[float]], count: int, seed: int
) -> Pairs:
    classes = len(matrix)
    cells = [[p if to != frm else 0.0 for to, p in enumerate(row)] for frm, row in enumerate(matrix)]
    weights = parts([labels.count(number) * sum(cells[number]) for number in range(classes)])
    picks = turns(weights, count, class_ties(classes, seed))
    wrong = {
        label: iter(
            turns(parts(cells[label]), picks.count(label), class_ties(classes, seed, f"cell turn {label}"))
        )
        for label in set(picks)
    }
    rows = members_in_turn(hashes, labels, picks, seed)
    return [(row, next(wrong[labels[row]])) for row in rows]


def normal(number: int, seed: int, purpose: str) -> float:
    """Return a standard normal draw (Box and Muller)."""
    radius = math.sqrt(-2 * math.log(unit(word(number, seed, f"{purpose} radius"))))
    return radius * math.cos(2 * math.pi * unit(word(number, seed, f"{purpose} angle")))


def gumbel(bits: int) -> float:
    return -math.log(-math.log(unit(bits)))


def instance_dependent(
    hashes: Sequence[int],
    labels: Sequence[int],
    features: Sequence[Sequence[float]],
    classes: int,
    count: int,
    seed: int,
) -> Pairs:
    """Flip the ``count`` samples whose own class falls furthest behind another, plus a Gumbel draw."""
    columns = list(zip(*features, strict=True))
    means = [math.fsum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column)) or 1.0
        for column, mean in zip(columns, means, strict=True)
    ]
    scored = []
    for row, (key, label) in enumerate(zip(hashes, labels, strict=True)):
        x = [
            (value - mean) / spread for value, mean, spread in zip(features[row], means, spreads, strict=True)
        ]
        logits = [
            sum(value * normal(d * classes + to, seed, f"projection {label}") for d, value in enumerate(x))
            / math.sqrt(len(x))
            for to in range(classes)
        ]
        others = [to for to in range(classes) if to != label]
        # Likelier to flip, the further another class stands above its own.
        score = max(logits[to] for to in others) - logits[label] + gumbel(word(key, seed, "select"))
        drawn = {
            to: logits[to] + gumbel(word(key ^ word(to, seed, "target class"), seed, "target"))
            for to in others
        }
        scored.append((-score, key, row, max(others, key=drawn.__getitem__)))
    return [(row, wrong) for _, _, row, wrong in sorted(scored)[:count]]


def caption_swap(
    hashes: Sequence[int], texts: Sequence[int], count: int, seed: int, owners: Sequence[int] | None = None
) -> Pairs:
    """Pair captions of different texts and images in "select" order; an odd count ends in a ring of three.

    A caption meets the latest that waits and fits; a third comes from the next two, or where images have
    several, from the next 64.
    """
    image = range(len(hashes)) if owners is None else owners
    waiting: list[int] = []
    pairs: list[int] = []
    for row in sorted(range(len(hashes)), key=lambda row: word(hashes[row], seed, "select")):
        fits = [other for other in waiting if texts[other] != texts[row] and image[other] != image[row]]
        if fits:
            waiting.remove(fits[-1])
            pairs += (fits[-1], row)
        else:
            waiting.append(row)
    pairs += waiting
    even = count - count % 2
    swaps = [swap for a, b in zip(pairs[:even:2], pairs[1:even:2], strict=True) for swap in ((a, b), (b, a))]
    if count % 2:
        first, second = pairs[even - 2 : even]
        candidates = pairs[even : even + (2 if owners is None else 64)]
        right = (
            c
            for c in candidates
            if texts[c] not in (texts[first], texts[second]) and image[c] not in (image[first], image[second])
        )
        third = next(right, candidates[0])
        swaps[-1:] = [(second, third), (third, first)]
    return swaps


def paper_released(hashes: Sequence[int], count: int, seed: int) -> Pairs:
    """Swap the captions of count // 2 pairs drawn with replacement, one after another."""
    order = sorted(range(len(hashes)), key=lambda row: word(hashes[row], seed, "select"))
    holds = list(order)
    for pair in range(count // 2):
        a, b = (word(2 * pair + side, seed, "draw") % len(order) for side in (0, 1))
        holds[a], holds[b] = holds[b], holds[a]
    return [(row, held) for row, held in zip(order, holds, strict=True) if row != held]


def epoch_order(
    ends: Sequence[int], streams: int, seed: int, epoch: int, *, shuffle: bool = True
) -> list[list[int]]:
    """Return the samples of every stream as read: pieces of shards shuffled, then four by four mixed."""
    total, found = ends[-1], []
    for stream in range(streams):
        low, high = stream * total // streams, (stream + 1) * total // streams
        pieces: list[list[int]] = []
        for sample in range(low, high):
            if sample == low or sample in ends:
                pieces.append([])
            pieces[-1].append(sample)
        if not shuffle:
            found.append(list(range(low, high)))
            continue
        pieces.sort(key=lambda piece: word(piece[0], seed, f"epoch {epoch} runs"))
        blocks = [list(itertools.chain(*pieces[start : start + 4])) for start in range(0, len(pieces), 4)]
        found.append(
            [
                s
                for block in blocks
                for s in sorted(block, key=lambda s: word(s, seed, f"epoch {epoch} samples"))
            ]
        )
    return found


def digest(numbers: object) -> str:
    """Return a short hash of integers, equal on every machine."""
    return hashlib.sha256(np.ascontiguousarray(numbers, "<i8").tobytes()).hexdigest()[:16]
