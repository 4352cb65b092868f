"""What was measured and is in no main mean, since the groups of a mean must have the same tasks."""

from __future__ import annotations

from collections import defaultdict

from probes.reporting.averages import Score, means, noise_key
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import several, tasks_behind


def uncompared(study: Study) -> list[str]:
    """Return a sentence for every head and every task that the means of the summary leave out."""
    notes: dict[str, list[str]] = defaultdict(list)
    for domain, title in DOMAINS:
        for family in dict.fromkeys(score.family for score in study.main):
            for note in _of(family, in_domain(of_family(study.main, family), domain)):
                notes[note].append(title.lower())
    both = {score.domain for score in study.main} == {domain for domain, _ in DOMAINS}
    # A note on both domains holds without naming either.
    return [
        f"{titles[0].capitalize()}: {note}" if both and len(titles) == 1 else note
        for note, titles in notes.items()
    ]


def _of(family: str, found: list[Score]) -> list[str]:
    kept = means(found, _key)
    shared = tasks_behind(kept.values())
    tasks = several(shared, limit=20)
    lacking = f"all the tasks that the other means are over ({tasks})" if kept else "the tasks of its group"
    dropped: dict[str, list[str]] = defaultdict(list)
    for level, head in dict.fromkeys(_key(score) for score in found):
        if (level, head) not in kept:
            dropped[head] += [] if level is None else [f"{level:g} %"]
    notes = [
        f"{head} on {family}{f', {several(levels)} noise' if levels else ''}: no run has {lacking}."
        for head, levels in dropped.items()
    ]
    beside = sorted({score.task for score in found} - set(shared))
    if beside and kept:
        notes.append(
            f"{several(beside, limit=20)} on {family}: not every head and noise level that is compared has "
            f"results; the means are over {tasks}."
        )
    return notes


def _key(score: Score) -> tuple[float | None, str]:
    return None if score.noise is None else noise_key(score), score.head
