"""What a reader must know: before reading any number, and of what was measured and is in no main mean."""

from __future__ import annotations

from collections import defaultdict

from probes.reporting.averages import Score, level_and_head, means, noise_key
from probes.reporting.records import Caution
from probes.reporting.sections import tries
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import several, tasks_behind, unique

BUNDLED = "digits"
QUICK_RECIPE = "quickstart"


def cautions(study: Study) -> tuple[Caution, ...]:
    """Return the cautions that these results call for."""
    found = (_quick_start(study), _one_pre_training(study), _one_seed(study), tries.caution(study))
    return tuple(caution for caution in found if caution)


def _quick_start(study: Study) -> Caution | None:
    bundled = {row.task for row in study.rows} == {BUNDLED}
    quick = any(QUICK_RECIPE in row.encoder for row in study.rows)
    if not (bundled or quick):
        return None
    causes = ["small encoders pre-trained for minutes"] * quick + ["the small bundled digits set"] * bundled
    return Caution(
        "A quick-start result.",
        f"These numbers come from {' and '.join(causes)}. They show that the pipeline works from end to end; "
        f"they say nothing about pre-training at scale.",
    )


def _one_pre_training(study: Study) -> Caution | None:
    encoders: dict[tuple[str, float], set[str]] = defaultdict(set)
    for score in study.known(study.scores):
        if score.family in study.ladders:
            encoders[score.family, noise_key(score)].add(score.encoder_hash)
    single = unique(level for (_, level), members in encoders.items() if len(members) == 1)
    if not single:
        return None
    title = "One pre-training run a noise level."
    if len(single) < len({level for _, level in encoders}):
        title = f"One pre-training run at {several([f'{level:g} %' for level in single])} noise."
    return Caution(
        title,
        "How much another pre-training seed would move a level is not known, so differences between levels "
        "may be due to the run and not to the noise. Seeds of the heads do not repeat the pre-training: "
        "nothing is marked as a difference where no level has two runs.",
    )


def _one_seed(study: Study) -> Caution | None:
    if len({score.seed for score in study.main}) > 1:
        return None
    return Caution(
        "One seed of each head.",
        "How much of a difference is the start of the head cannot be told. Run python -m probes.run with "
        "--seeds 3.",
    )


def uncompared(study: Study) -> list[str]:
    """Return a sentence for every head and every task that the means of the summary leave out.

    The groups of a mean must have the same tasks.
    """
    notes: dict[str, list[str]] = defaultdict(list)
    for domain, title in DOMAINS:
        for family in study.families:
            for note in _of(family, in_domain(of_family(study.main, family), domain)):
                notes[note].append(title.lower())
    both = {score.domain for score in study.main} == {domain for domain, _ in DOMAINS}
    # A note on both domains holds without naming either.
    return [
        f"{titles[0].capitalize()}: {note}" if both and len(titles) == 1 else note
        for note, titles in notes.items()
    ]


def _of(family: str, found: list[Score]) -> list[str]:
    kept = means(found, level_and_head)
    shared = tasks_behind(kept.values())
    tasks = several(shared, limit=20)
    lacking = f"all the tasks that the other means are over ({tasks})" if kept else "the tasks of its group"
    dropped: dict[str, list[str]] = defaultdict(list)
    for level, head in dict.fromkeys(map(level_and_head, found)):
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
