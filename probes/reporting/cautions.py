"""What a reader must know before reading any number."""

from __future__ import annotations

from collections import defaultdict

from probes.reporting.averages import noise_key
from probes.reporting.records import Caution
from probes.reporting.study import Study
from probes.reporting.wording import several, unique

BUNDLED = "digits"
QUICK_RECIPE = "quickstart"


def cautions(study: Study) -> tuple[Caution, ...]:
    """Return the cautions that these results call for."""
    found = (_quick_start(study), _one_pre_training(study), _one_seed(study))
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
