"""The paper's claims as comparisons: what each takes from what, and which way it should differ.

They were written down before any result of a study: none is chosen by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from probes.reporting.averages import Score, noise_key
from probes.reporting.inference import Estimate
from probes.reporting.ladders import Run, change, runs_of
from probes.reporting.paired import BASELINE, difference, repeated
from probes.reporting.study import in_domain
from probes.reporting.wording import several, unique
from probes.results.row import Domain

Unit = Literal["points", "nats"]
# "Slight" noise in the paper is 5 or 10 %.
SLIGHT = 10.0
SINGLE = "one pre-training run a noise level"
NAMES: dict[Domain, str] = {"id": "in-domain", "ood": "out-of-domain"}


class Question(NamedTuple):
    """A claim before it is judged.

    Attributes:
        name: Stable name.
        text: The claim.
        compared: What is taken from what.
        unit: Unit of the difference.
        sign: Direction that the claim expects.
        found: The difference, shares and nats; None where the results have nothing of it.
        lacking: What the results lack, or why there is no interval.
        p: Two-sided p value that is judged, if it is not that of ``found``.
    """

    name: str
    text: str
    compared: str
    unit: Unit
    sign: int
    found: Estimate | None
    lacking: str = ""
    p: float | None = None


def questions(main: Sequence[Score], noisy: Sequence[Score], heads: Sequence[str]) -> list[Question]:
    """Return the paper's claims on the encoders of these scores.

    Noise levels are compared if all encoders are of one family: those of others differ in more than the
    noise.

    Args:
        main: Scores of the heads' main settings on clean downstream labels.
        noisy: The same on noisy downstream labels.
        heads: Heads in their main setting, lp first where it is there.
    """
    ladder = main if len({score.family for score in main}) == 1 else []
    return [*_of_noise(ladder, heads), *_of_heads(main, noisy, ladder)]


def _of_noise(main: Sequence[Score], heads: Sequence[str]) -> list[Question]:
    """Return the claims on encoders alone, by linear probing where there is any."""
    head = BASELINE if BASELINE in heads else heads[0]
    measured = [score for score in main if score.head == head]
    inside, outside = in_domain(measured, "id"), in_domain(measured, "ood")
    slight = tuple(level for level in _levels(measured) if 0 < level <= SLIGHT)
    noisy = tuple(level for level in _levels(measured) if level > 0)
    return [
        _noise_question(
            "slight-noise-helps-id",
            "Slight noise in pre-training helps in-domain",
            f"{head}, in-domain",
            "points",
            1,
            runs_of(inside, lambda score: score.metric),
            slight,
            what=f"a noise level up to {SLIGHT:g} %",
        ),
        _noise_question(
            "noise-hurts-ood",
            "Noise in pre-training hurts out-of-domain",
            f"{head}, out-of-domain",
            "points",
            -1,
            runs_of(outside, lambda score: score.metric),
            noisy,
        ),
        _noise_question(
            "noise-raises-sve",
            "Noise in pre-training raises SVE",
            "encoder SVE, in-domain",
            "nats",
            1,
            runs_of(inside, lambda score: score.sve),
            noisy,
        ),
        _noise_question(
            "noise-raises-lsvr",
            "Noise in pre-training raises LSVR",
            "encoder LSVR, out-of-domain",
            "nats",
            1,
            runs_of(outside, lambda score: score.lsvr),
            noisy,
        ),
    ]


def _levels(found: Iterable[Score]) -> list[float]:
    return unique(noise_key(score) for score in found if score.noise is not None)


def _noise_question(
    name: str,
    text: str,
    quantity: str,
    unit: Unit,
    sign: int,
    runs: dict[str, Run],
    levels: Sequence[float],
    *,
    what: str = "a noise level above 0 %",
) -> Question:
    shown = several([f"{level:g} %" for level in levels])
    estimate = change(runs.values(), levels, 0.0) if levels else None
    lacking = ""
    if not runs:
        lacking = f"no encoders that differ in noise alone have results: {quantity}"
    elif estimate is None:
        lacking = f"no runs of both 0 % and {what}"
    else:
        lacking = _lacking(estimate)
    compared = f"{quantity}: mean of {shown} minus 0 %" if levels else quantity
    return Question(name, text, compared, unit, sign, estimate, lacking)


def _of_heads(clean: Sequence[Score], noisy: Sequence[Score], ladder: Sequence[Score]) -> list[Question]:
    """Return the claims on heads."""
    found = [
        _head_question(
            f"{head}-over-{base}-{domain}",
            f"{head} beats {base} {name}",
            in_domain(clean, domain),
            head,
            base,
        )
        for head, base in (("nmtune", "mlp"), ("mlp", "lp"))
        for domain, name in NAMES.items()
    ]
    found += [_clean_best(in_domain(ladder, domain), domain, name) for domain, name in NAMES.items()]
    return found + [
        _head_question(
            f"nmtune-over-lp-downstream-noise-{domain}",
            f"nmtune beats lp {name} also where downstream labels are noisy",
            in_domain(noisy, domain),
            "nmtune",
            "lp",
            where="no results with downstream noise of",
        )
        for domain, name in NAMES.items()
    ]


def _head_question(
    name: str, text: str, found: Sequence[Score], head: str, base: str, where: str = "no results of"
) -> Question:
    estimate = difference(found, head, base)
    lacking = ""
    if estimate is None:
        lacking = f"{where} both {head} and {base}"
    elif not repeated(score for score in found if score.head == head):
        lacking = SINGLE
    else:
        lacking = _lacking(estimate)
    return Question(name, text, f"{head} minus {base}, all noise levels", "points", 1, estimate, lacking)


def _clean_best(found: Sequence[Score], domain: Domain, name: str) -> Question:
    """Compare the clean encoder with its strongest rival: to be the best it must beat every level.

    Beating all of them needs no adjustment (the largest p value counts); losing to any does.
    """
    runs = runs_of([score for score in found if score.head == "nmtune"], lambda score: score.metric)
    levels = [level for level in unique(run.level for run in runs.values()) if level > 0]
    rivals = {level: one for level in levels if (one := change(runs.values(), [level], 0.0))}
    about = (f"nmtune-makes-clean-best-{domain}", f"With nmtune the clean encoder is the best {name}")
    if not rivals:
        lacking = (
            "no results of nmtune by noise level"
            if not runs
            else "no runs of both 0 % and a noise level above 0 %"
        )
        return Question(*about, f"nmtune, {name}: 0 % minus the best other level", "points", 1, None, lacking)
    level, strongest = max(rivals.items(), key=lambda item: item[1].mean)
    turned = _turned(strongest)
    ps = [one.p for one in rivals.values() if one.p is not None]
    compared = f"nmtune, {name}: 0 % minus {level:g} %, the best other level"
    if len(ps) < len(rivals):
        return Question(*about, compared, "points", 1, turned, _lacking(turned) or "a level has one run")
    p = max(ps) if turned.mean > 0 else min(1.0, len(ps) * min(ps))
    return Question(*about, compared, "points", 1, turned, p=p)


def _lacking(found: Estimate) -> str:
    """Say why a difference has no interval; empty where it has one."""
    if found.p is not None:
        return ""
    return SINGLE if found.n < 2 or found.against else "the runs agree to the last digit"


def _turned(found: Estimate) -> Estimate:
    """Return the difference taken the other way round."""
    low, high = (None if end is None else -end for end in (found.high, found.low))
    if found.against:
        return found._replace(
            mean=-found.mean, low=low, high=high, values=found.against, against=found.values
        )
    return found._replace(mean=-found.mean, low=low, high=high, values=tuple(-one for one in found.values))
