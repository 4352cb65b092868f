"""Heads ranked over many tasks: Friedman's test, Nemenyi's comparisons and their critical difference.

Blocks are tasks, never seeds: each gives one mean a head. Demšar (JMLR 7, 2006) describes the procedure.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from probes.reporting.averages import Score
from probes.reporting.inference import LEVEL

HEADS, TASKS = 3, 5  # the fewest that ranks say anything of


class Ranks(NamedTuple):
    """Mean ranks of H heads over T tasks; rank 1 is the best.

    Attributes:
        heads: The heads, best first.
        ranks: Mean rank of each.
        statistic: Friedman's chi-squared.
        p: Its p value.
        critical_difference: Mean ranks that differ by less are not told apart at 5 %.
        p_values: Nemenyi's p value of every pair, [H, H].
        tasks: The tasks.
    """

    heads: tuple[str, ...]
    ranks: tuple[float, ...]
    statistic: float
    p: float
    critical_difference: float
    p_values: tuple[tuple[float, ...], ...]
    tasks: tuple[str, ...]


def rank_heads(found: Sequence[Score], heads: Sequence[str]) -> Ranks | None:
    """Rank heads over the tasks that all of them have; None with fewer than 3 heads or 5 tasks.

    Args:
        found: Scores of one domain and one set of encoders.
        heads: The heads, in the order that breaks ties.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in found:
        values[score.task][score.head].append(score.metric)
    present = [head for head in heads if any(head in of_task for of_task in values.values())]
    tasks = sorted(task for task, of_task in values.items() if set(present) <= of_task.keys())
    if len(present) < HEADS or len(tasks) < TASKS:
        return None
    table = np.array([[statistics.fmean(values[task][head]) for head in present] for task in tasks])
    # Importing it takes as long as all else: only where there is something to rank.
    import scikit_posthocs

    ranks = stats.rankdata(-table, axis=1).mean(axis=0)
    order = np.argsort(ranks, kind="stable")
    test = stats.friedmanchisquare(*table.T)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(table).to_numpy()[np.ix_(order, order)]
    count = len(present)
    studentised = stats.studentized_range.ppf(1 - LEVEL, count, np.inf) / math.sqrt(2)
    return Ranks(
        heads=tuple(present[place] for place in order),
        ranks=tuple(float(ranks[place]) for place in order),
        statistic=float(test.statistic),
        p=float(test.pvalue),
        critical_difference=float(studentised) * math.sqrt(count * (count + 1) / (6 * len(tasks))),
        p_values=tuple(tuple(float(p) for p in row) for row in nemenyi),
        tasks=tuple(tasks),
    )
