"""Which scores of a group may stand in one mean, and beside its paired difference.

A mean over noise levels or shares of the data takes in unlike runs. It says something only if each of
them was measured on the same tasks and shares, and compares with another head's only on the same cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from probes.reporting.averages import Case, Score, case_of


def balanced(found: Sequence[Score]) -> list[Score]:
    """Return the scores on what every run of ``found`` has: tasks at a share, by domain.

    Dropping the runs that lack a task instead would drop whole noise levels: one task that was run at a
    single level would leave that level alone in a mean over all. Empty if the runs have nothing in common.
    """
    runs: dict[tuple[object, ...], set[Case]] = defaultdict(set)
    for score in found:
        runs[score.domain, score.encoder_hash, score.seed].add(case_of(score))
    shared: dict[str, set[Case]] = {}
    for domain in {score.domain for score in found}:
        shared[domain] = set.intersection(*(parts for run, parts in runs.items() if run[0] == domain))
    return [score for score in found if case_of(score) in shared[score.domain]]


def comparable(found: Sequence[Score], measure: Sequence[Score]) -> list[Score]:
    """Return of ``found`` the scores of heads that have every case of ``measure``, on those cases alone."""
    wanted = {case(score) for score in measure}
    cases: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for score in found:
        cases[score.head].add(case(score))
    return [score for score in found if wanted <= cases[score.head] and case(score) in wanted]


def case(score: Score) -> tuple[object, ...]:
    """Return what a score was measured on, whatever the head."""
    return score.encoder_hash, score.seed, case_of(score)
