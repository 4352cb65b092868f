"""How much a head differs from a baseline: one mean difference a pre-training run.

The same encoder, task, fraction and seed give a pair: both heads were fitted on the same subset and
scored on the same test sets. Their differences vary far less than either score does. But pairs of one encoder
are no independent evidence: they share whatever its pre-training made easy for one of the heads. So they
become one number, their mean, and the interval is over these numbers. Tasks are crossed with the
encoders and were not drawn from anything: what holds, holds of these tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from probes.reporting.averages import Case, Score, case_of, noise_key, per_run
from probes.reporting.families import layer_of
from probes.reporting.inference import Estimate, Judged, estimate, judge

BASELINE = "lp"
METHOD = (
    "Differences from lp are paired over task x fraction x seed and averaged to one a pre-training run; "
    "brackets hold the 95 % Student t interval of the mean over runs, df = runs − 1. They speak of these "
    "tasks, which are the same for every run, and of other pre-training runs like these."
)


def marks(comparisons: int) -> str:
    """Return what bold means in a table of so many comparisons."""
    if not comparisons:
        return (
            "Nothing is marked: no noise level has two pre-training runs, so that a difference may be this "
            "run's alone."
        )
    return (
        f"Bold: p < 0.05 after Holm's adjustment over the {comparisons} comparisons of the table that have "
        f"two pre-training runs at a noise level; all others are not marked."
    )


class Asked(NamedTuple):
    """A comparison to make: scores of one domain, and the head to hold against the baseline."""

    found: Sequence[Score]
    head: str


def difference(found: Iterable[Score], head: str, baseline: str = BASELINE) -> Estimate | None:
    """Return the difference of the metric, ``head`` minus ``baseline``, over runs; None without a pair.

    Layers of one network are one run: they share whatever its pre-training made easy for one of the heads.
    """
    found = list(found)
    layered = {score.network for score in found if layer_of(score.encoder)}
    run_of = {
        score.encoder_hash: score.network if score.network in layered else score.encoder_hash
        for score in found
    }
    runs: dict[str, list[float]] = defaultdict(list)
    for encoder, value in differences(found, head, baseline).items():
        runs[run_of[encoder]].append(value)
    return estimate([fmean(values) for values in runs.values()]) if runs else None


def differences(found: Iterable[Score], head: str, baseline: str = BASELINE) -> dict[str, float]:
    """Return the mean difference of every pre-training run, by encoder hash, all over the same cases."""
    pairs: dict[tuple[str, Case, int], dict[str, Score]] = defaultdict(dict)
    for score in found:
        if score.head in (head, baseline):
            pairs[score.encoder_hash, case_of(score), score.seed][score.head] = score
    whole = (pair for pair in pairs.values() if len(pair) == 2)
    return per_run((pair[head], pair[head].metric - pair[baseline].metric) for pair in whole)


def compare(asked: Sequence[Asked]) -> list[Judged | None]:
    """Make comparisons with the baseline and judge them together, as those of one table are."""
    return judge(
        [
            (difference(found, head), repeated(score for score in found if score.head == head))
            for found, head in asked
        ]
    )


def counted(judged: Sequence[Judged | None]) -> int:
    """Return how many comparisons the adjustment counts."""
    return sum(one is not None and one.p_holm is not None for one in judged)


def repeated(found: Iterable[Score]) -> bool:
    """Whether any noise level of a family has two pre-training runs or more."""
    runs: dict[tuple[str, float | None], set[str]] = defaultdict(set)
    for score in found:
        level = None if score.noise is None else noise_key(score)
        runs[score.family, level].add(score.encoder_hash)
    return any(len(members) > 1 for members in runs.values())
