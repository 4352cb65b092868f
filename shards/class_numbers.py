"""Classes as indices: named ones are numbered in sorted order, numbers that leave gaps are closed up."""

from __future__ import annotations

import sys

import numpy as np

from shards.noise import Integers


def numbered(
    labels: Integers, names: dict[str, int], known: tuple[str, ...] | None
) -> tuple[Integers, list[str]]:
    """Return classes numbered in sorted order of their names, and the names.

    Where some classes are names, numbers among them are names too: class 0 is not the first name. Where none
    is, they keep the order of their numbers.

    Args:
        labels: A number, or below 0 the place of a name, int64 [N].
        names: The names, with their places.
        known: What the numbers are called; None if they are called by themselves.
    """
    numbers = np.unique(labels[labels >= 0]).tolist()
    called = {number: known[number] if known is not None else str(number) for number in numbers}
    classes = sorted({*names, *called.values()}) if names else list(called.values())
    place = {name: number for number, name in enumerate(classes)}
    values = {value: place[name] for name, value in names.items()}
    values |= {number: place[name] for number, name in called.items()}
    found = np.array(sorted(values), np.int64)
    ranks = np.array([values[value] for value in found.tolist()], np.int64)
    return ranks[np.searchsorted(found, labels)], classes


def has_gaps(labels: Integers) -> bool:
    """Whether numbers between 0 and the largest are no sample's class, of which noise would make labels."""
    numbers = np.unique(labels)
    return len(numbers) > 0 and tell_of_gaps(numbers)


def tell_of_gaps(numbers: Integers) -> bool:
    """Return whether class numbers, ascending, are not 0 to K - 1; tell then that they are made so."""
    classes, largest = len(numbers), int(numbers[-1])
    if classes == largest + 1:
        return False
    print(
        f"class numbers from {numbers[0]:,} to {largest:,} are {classes:,} classes: they are numbered 0 to "
        f"{classes - 1:,} here, and named by the numbers they had",
        file=sys.stderr,
    )
    return True
