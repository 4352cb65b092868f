"""What every section reads: the rows that count, and their scores."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

from probes.reporting.averages import Score, level_and_head, noise_key, plain, scores
from probes.reporting.selection import Selection
from probes.reporting.variants import FIRST, is_ablation
from probes.reporting.wording import metric_label, several, unique
from probes.results import Row
from probes.results.row import Domain

DOMAINS: tuple[tuple[Domain, str], ...] = (("id", "In-domain"), ("ood", "Out-of-domain"))


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows that count with everything derived from them once."""

    selection: Selection

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that count."""
        return self.selection.rows

    @property
    def heads(self) -> tuple[str, ...]:
        """Labels of the heads in their main setting."""
        return self.selection.main_heads

    @functools.cached_property
    def scores(self) -> list[Score]:
        """One score a fit and domain; those of encoders of unknown noise come last."""
        return sorted(scores(self.selection), key=lambda score: score.noise is None)

    @functools.cached_property
    def dataset_scores(self) -> list[Score]:
        """One score a fit and test set; the test set stands as the task."""
        return scores(self.selection, per_dataset=True)

    @functools.cached_property
    def main(self) -> list[Score]:
        """Scores of main settings, clean labels, largest fraction of each task: what most sections show."""
        return plain(self.of_main_heads(self.scores))

    @functools.cached_property
    def beside(self) -> list[str]:
        """Pairs of head and encoder that have results, but none among the main scores, as text."""
        shown = {(score.head, score.encoder) for score in self.main}
        missed = {
            (score.head.partition(" (")[0], score.encoder)
            for score in self.scores
            if (score.head.partition(" (")[0], score.encoder) not in shown
            and not is_ablation(score.head.partition(" (")[0])
        }
        return [f"{head} on {encoder}" for head, encoder in sorted(missed)]

    @functools.cached_property
    def ladders(self) -> dict[str, list[float]]:
        """Families with two noise levels or more -> their levels in percent, ascending."""
        found = {
            family: unique(noise_key(score) for score in self.known(self.scores) if score.family == family)
            for family in dict.fromkeys(score.family for score in self.known(self.scores))
        }
        return {family: levels for family, levels in found.items() if len(levels) > 1}

    @functools.cached_property
    def families(self) -> list[str]:
        """Families with main scores."""
        return list(dict.fromkeys(score.family for score in self.main))

    @functools.cached_property
    def fractions(self) -> list[float]:
        """Shares of the training data that were used, ascending."""
        return unique(score.fraction for score in self.scores)

    @functools.cached_property
    def metric(self) -> str:
        """``accuracy`` or another metric of all tasks; ``score`` where tasks have metrics of their own."""
        return metric_label(self.rows)

    def fitted_on(self, family: str, tasks: Iterable[str]) -> str:
        """Name the share of the training data behind the main scores of these tasks."""
        wanted = set(tasks)
        shares: dict[float, set[str]] = defaultdict(set)
        for score in of_family(self.main, family):
            if score.task in wanted:
                shares[score.fraction].add(score.task)
        named = [
            (f"{100 * share:g} %", several(sorted(shares[share]))) for share in sorted(shares, reverse=True)
        ]
        if len(named) == 1:
            return f"{named[0][0]} of the training data of {named[0][1]}"
        return f"{several([f'{share} of {of}' for share, of in named])} (shares of the training data)"

    def known(self, found: Iterable[Score]) -> list[Score]:
        """Return the scores of encoders whose pre-training noise is known."""
        return [score for score in found if score.noise is not None]

    def lines(self, found: Iterable[Score]) -> list[tuple[float | None, str]]:
        """Return noise level and head of each line of a table: levels ascending, unknown noise last."""
        there = {level_and_head(score) for score in found}
        levels = sorted({level for level, _ in there}, key=lambda level: (level is None, level or 0.0))
        return [(level, head) for level in levels for head in self.heads if (level, head) in there]

    def of_main_heads(self, found: Iterable[Score]) -> list[Score]:
        """Return the scores of heads in their main setting."""
        return [score for score in found if score.head in self.heads]

    def title(self, family: str, text: str) -> str:
        """Put the family before a title where there are several."""
        return text if len(self.ladders) < 2 else f"{family}: {text}"

    def head_slot(self, head: str) -> int:
        """Return the palette slot of a head: the same in every figure, for the paper's in every report."""
        return [*FIRST, *(other for other in self.heads if other not in FIRST)].index(head)


def in_domain(found: Iterable[Score], domain: Domain) -> list[Score]:
    """Return the scores of one domain."""
    return [score for score in found if score.domain == domain]


def of_family(found: Sequence[Score], family: str) -> list[Score]:
    """Return the scores of one family."""
    return [score for score in found if score.family == family]
