"""From rows to scores, and from scores to means with their spread and N."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from probes.reporting.families import layer_of, repetition
from probes.reporting.selection import Selection
from probes.results import Row
from probes.results.row import Domain

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One fitted head on one domain of its task: the mean over that domain's test sets.

    Attributes:
        family: Encoders that differ in noise and seed only.
        encoder: Display name of the encoder.
        encoder_hash: Hash of the encoder.
        noise: Realised pre-training noise, 0 to 1; None where unknown.
        head: Label of the head.
        task: The task.
        domain: ``id`` or ``ood``.
        fraction: Share of the training data used, 0 to 1.
        repetition: Which repetition of its pre-training the encoder is, for example ``seed0``; repetitions of
            one name at several noise levels make a ladder. None where its name does not tell.
        seed: Seed of head, subset and downstream noise.
        downstream_noise: Share of training labels flipped on purpose, 0 to 1.
        downstream_model: Name of the noise model that flipped them; empty without flips.
        metric: The task's metric, 0 to 1.
        sve: Singular value entropy of the encoder's features, in nats.
        lsvr: Largest singular value ratio of the encoder's features, in nats.
        head_sve: Singular value entropy of the features as the head's classifier sees them, in nats.
        head_lsvr: Largest singular value ratio of the same. Both NaN where they were not measured.
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error, 0 to 1. Both NaN where they were not measured.
        datasets: Names of the test sets behind the mean.
        network: Where the encoder came from, whatever its layer: the run's path, or else the name.
    """

    family: str
    encoder: str
    encoder_hash: str
    noise: float | None
    head: str
    task: str
    domain: Domain
    fraction: float
    repetition: str | None = None
    seed: int
    downstream_noise: float
    downstream_model: str = ""
    metric: float
    sve: float
    lsvr: float
    head_sve: float
    head_lsvr: float
    nll: float = math.nan
    ece: float = math.nan
    datasets: tuple[str, ...]
    network: str = ""


class Mean(NamedTuple):
    """A mean over pre-training runs; a run's own value is its mean over tasks of its mean over head seeds.

    Attributes:
        value: The mean.
        sd: Standard deviation over pre-training runs (runs - 1 in the denominator); None for one run.
        seed_sd: Standard deviation over seeds of the head on one encoder, pooled over runs; None for one
            seed.
        runs: The value of each pre-training run.
        seeds: Fewest and most seeds of the head that a run has.
        tasks: Names of the tasks behind each run's value.
    """

    value: float
    sd: float | None
    seed_sd: float | None
    runs: tuple[float, ...]
    seeds: tuple[int, int]
    tasks: tuple[str, ...]

    @property
    def n(self) -> int:
        """Pre-training runs."""
        return len(self.runs)

    def without_spread(self) -> Mean:
        """Return the mean without deviations, which would be of noise levels or shares of the data."""
        return self._replace(sd=None, seed_sd=None)


def scores(selection: Selection, *, per_dataset: bool = False) -> list[Score]:
    """Return one score for every fitted head and domain, in the order of the rows.

    Args:
        selection: The rows that count.
        per_dataset: Whether every test set counts as a task of its own, under its own name.
    """
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in selection.rows:
        label = selection.head[row.row_id]
        task = row.dataset if per_dataset else row.task
        key = (
            row.encoder_hash,
            label,
            task,
            row.domain,
            row.fraction,
            row.seed,
            row.downstream_noise,
            _model(row),
        )
        groups[key].append(row)
    return [
        _score(members, str(key[2]), selection.family[members[0].encoder_hash], str(key[1]))
        for key, members in groups.items()
    ]


def _score(rows: list[Row], task: str, family: str, head: str) -> Score:
    first = rows[0]
    return Score(
        family=family,
        encoder=first.encoder,
        encoder_hash=first.encoder_hash,
        noise=first.noise_ratio,
        head=head,
        task=task,
        domain=first.domain,
        fraction=first.fraction,
        repetition=repetition(first.encoder),
        seed=first.seed,
        downstream_noise=first.downstream_noise,
        downstream_model=_model(first),
        metric=statistics.fmean(row.metric for row in rows),
        sve=statistics.fmean(row.sve for row in rows),
        lsvr=statistics.fmean(row.lsvr for row in rows),
        head_sve=statistics.fmean(_measured(row.head_sve) for row in rows),
        head_lsvr=statistics.fmean(_measured(row.head_lsvr) for row in rows),
        nll=statistics.fmean(_measured(row.nll) for row in rows),
        ece=statistics.fmean(_measured(row.ece) for row in rows),
        datasets=tuple(sorted({row.dataset for row in rows})),
        network=first.run_path or first.encoder.removesuffix(layer_of(first.encoder)),
    )


def _model(row: Row) -> str:
    return (row.downstream_model or "symmetric").partition(":")[0] if row.downstream_noise else ""


def _measured(value: float | None) -> float:
    return math.nan if value is None else value


def means(
    found: Iterable[Score],
    by: Callable[[Score], Key],
    value: Callable[[Score], float] = lambda score: score.metric,
) -> dict[Key, Mean]:
    """Return the mean of ``value`` in every group named by ``by``, groups in order of first sight.

    All groups are averaged over the same tasks, the set that most groups and tasks share; a group
    that lacks one of them is left out, since its mean would compare with none of the others.
    """
    groups: dict[Key, list[Score]] = defaultdict(list)
    for score in found:
        groups[by(score)].append(score)
    if not groups:
        return {}
    shared = most_shared([frozenset(score.task for score in group) for group in groups.values()])
    result = {}
    for key, group in groups.items():
        mean = _mean([score for score in group if score.task in shared], value)
        if mean and len(mean.tasks) == len(shared):
            result[key] = mean
    return result


def most_shared(sets: Sequence[frozenset[Any]]) -> frozenset[Any]:
    """Return the set that covers most: things in it times the sets that have all of them."""
    return max(
        sets,
        key=lambda things: (
            len(things) * sum(things <= other for other in sets),
            len(things),
            sorted(map(repr, things)),
        ),
    )


def _mean(group: Sequence[Score], value: Callable[[Score], float]) -> Mean | None:
    """Average over tasks within each fit, over seeds of the head within each run, then over runs."""
    fits: dict[str, dict[int, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for score in group:
        fits[score.encoder_hash][score.seed][score.task].append(value(score))
    tasks = {score.task for score in group}
    runs = [
        [
            statistics.fmean(statistics.fmean(of_task) for of_task in fit.values())
            for fit in seeds.values()
            if fit.keys() == tasks
        ]
        for seeds in fits.values()
    ]
    runs = [seeds for seeds in runs if seeds]
    if not runs:
        return None
    values = tuple(map(statistics.fmean, runs))
    return Mean(
        value=statistics.fmean(values),
        sd=_deviation(values),
        seed_sd=_pooled([_deviation(seeds) for seeds in runs]),
        runs=values,
        seeds=(min(map(len, runs)), max(map(len, runs))),
        tasks=tuple(sorted(tasks)),
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _pooled(deviations: Sequence[float | None]) -> float | None:
    known = [deviation for deviation in deviations if deviation is not None]
    return math.sqrt(statistics.fmean(deviation**2 for deviation in known)) if known else None


class Case(NamedTuple):
    """What a head was measured on, within an encoder and a seed."""

    task: str
    domain: str
    fraction: float
    downstream_noise: float
    downstream_model: str


def case_of(score: Score) -> Case:
    """Return what a score was measured on."""
    return Case(score.task, score.domain, score.fraction, score.downstream_noise, score.downstream_model)


def per_run(found: Iterable[tuple[Score, float]]) -> dict[str, float]:
    """Return one value for every pre-training run, by encoder hash.

    All are over the same cases, those that most runs share; a run that lacks one of them is left out. A run's
    value is its mean over tasks of its mean over cases and seeds.
    """
    runs: dict[str, dict[Case, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score, value in found:
        runs[score.encoder_hash][case_of(score)].append(value)
    if not runs:
        return {}
    shared = most_shared([frozenset(cases) for cases in runs.values()])
    return {
        encoder: _over_tasks({case: statistics.fmean(cases[case]) for case in shared})
        for encoder, cases in runs.items()
        if shared <= cases.keys()
    }


def _over_tasks(values: Mapping[Case, float]) -> float:
    tasks: dict[str, list[float]] = defaultdict(list)
    for case, value in values.items():
        tasks[case.task].append(value)
    return statistics.fmean(map(statistics.fmean, tasks.values()))


def noise_key(score: Score) -> float:
    """Return the noise of a score as the percentage that groups encoders: realised, to 0.1 %."""
    return percentage(score.noise or 0.0)


def level_and_head(score: Score) -> tuple[float | None, str]:
    """Return what makes a line of a table: the noise in percent, None if unknown, and the head."""
    return None if score.noise is None else noise_key(score), score.head


def percentage(noise: float) -> float:
    """Return a realised noise ratio as the percentage that groups encoders, to 0.1 %."""
    return round(100 * noise, 1)


def plain(found: Iterable[Score]) -> list[Score]:
    """Return the scores of clean labels at the largest share of the data each family has of each task."""
    clean = [score for score in found if score.downstream_noise == 0]
    largest: dict[tuple[str, str], float] = {}
    for score in clean:
        name = score.family, score.task
        largest[name] = max(score.fraction, largest.get(name, 0.0))
    return [score for score in clean if score.fraction == largest[score.family, score.task]]
