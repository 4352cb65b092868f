"""Share out picks among classes so that every class stays within one of its share, at every count.

The first k picks of the sequence give class c either floor or ceil of k * size_c / N, for every k
at once. That is what makes a noise plan exact, balanced and nested: a level flips the first k of
one sequence, so a lower level's flips are among a higher level's. The largest-remainder method is
balanced but not monotone in k, and would break nesting.

This is the chairman assignment problem (R. Tijdeman, Discrete Mathematics 32, 1980): pick j of a
class may come once its share has passed j, and must come before its share passes j + 1. Such
windows can always be met, and earliest-deadline-first meets them (G. Steiner and S. Yeomans, 1993).
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def quota_sequence(
    weights: Integers, count: int, tie_break: npt.NDArray[np.uint64] | None = None
) -> Integers:
    """Return the class of each of the first ``count`` picks, int64 [count].

    Args:
        weights: Non-negative integer weight of each class, int64 [C]; class c's share of k picks is
            ``k * weights[c] / weights.sum()``. With class sizes as weights, no class is ever asked
            for more samples than it has.
        count: How many picks; at most ``weights.sum()``.
        tie_break: Which of two classes with the same deadline goes first, [C]; default is by index.

    Cost: O((count + C) log C).
    """
    if not count:
        return np.empty(0, np.int64)
    classes, numbers = _jobs(weights, count)
    total = int(weights.sum())
    share = weights[classes]
    # Products reach N^2, about 2e14 at 15 million samples: far inside 64 bits.
    release = numbers * total // share + 1
    deadline = -((-(numbers + 1) * total) // share)
    ties = classes.astype(np.uint64) if tie_break is None else tie_break[classes]
    # One small integer a job stands for its place in (deadline, tie) order, so the heap holds ints.
    by_deadline = np.lexsort((numbers, ties, deadline))
    priority = np.empty(len(classes), np.int64)
    priority[by_deadline] = np.arange(len(classes))
    by_release = np.argsort(release, kind="stable")
    order = _earliest_deadline_first(release[by_release].tolist(), priority[by_release].tolist(), count)
    return classes[by_deadline[order]]


def _jobs(weights: Integers, count: int) -> tuple[Integers, Integers]:
    """Return (class, number within the class) of every job that may start within ``count`` picks."""
    present = np.flatnonzero(weights)
    total = int(weights.sum())
    # Job j is released at floor(j * total / weight) + 1, so it matters while j * total < count * weight.
    jobs = -(-count * weights[present] // total)
    classes = np.repeat(present, jobs)
    starts = np.repeat(np.cumsum(jobs) - jobs, jobs)
    return classes.astype(np.int64), np.arange(len(classes), dtype=np.int64) - starts


def _earliest_deadline_first(release: list[int], priority: list[int], count: int) -> list[int]:
    """Run unit jobs one a step: at each step, of the released ones, the one due first.

    At least one job is always ready: at step k the shares of the classes add up to k, and only
    k - 1 picks are done, so some class is owed one.
    """
    push, pop = heapq.heappush, heapq.heappop
    ready: list[int] = []
    order: list[int] = []
    next_job, jobs = 0, len(release)
    for step in range(1, count + 1):
        while next_job < jobs and release[next_job] <= step:
            push(ready, priority[next_job])
            next_job += 1
        order.append(pop(ready))
    return order


def picks_by_rank(classes: Integers, order: Integers, sequence: Integers, num_classes: int) -> Integers:
    """Turn a sequence of classes into a sequence of samples, int64 [len(sequence)].

    The j-th pick of a class is the class's j-th sample in ``order``.

    Args:
        classes: Class of each sample, int64 [N].
        order: A permutation of the samples, int64 [N]; within a class, earlier ones are picked first.
        sequence: Class of each pick, from :func:`quota_sequence`.
        num_classes: C.
    """
    grouped = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes, minlength=num_classes)
    starts = np.cumsum(sizes) - sizes
    by_class = np.argsort(sequence, kind="stable")
    counts = np.bincount(sequence, minlength=num_classes)
    if np.any(counts > sizes):
        raise ValueError(f"class {int(np.argmax(counts > sizes))} is picked more often than it has samples")
    first = np.cumsum(counts) - counts
    rank = np.empty(len(sequence), np.int64)
    rank[by_class] = np.arange(len(sequence)) - first[sequence[by_class]]
    return grouped[starts[sequence] + rank]
