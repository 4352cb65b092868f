"""The paper's claims, held against the runs at hand: what may be said of each.

The margins were written down before any result of a study, as ``questions`` was: none is chosen by looking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from probes.reporting.inference import LEVEL, detectable, equivalence, holm
from probes.reporting.questions import Question, Unit, questions
from probes.reporting.study import Study, of_family

FORMAT = "nml-claims/1"
Verdict = Literal["supported", "contradicted", "undecided", "too few runs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margins:
    """Differences too small to matter, named before anything is tested.

    Attributes:
        points: Of accuracy, in percentage points.
        nats: Of SVE and LSVR.
    """

    points: float = 0.5
    nats: float = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A judged claim.

    Attributes:
        name: Stable name, for example ``noise-hurts-ood``.
        encoders: The encoders it is of.
        text: The claim.
        compared: What is taken from what.
        unit: Unit of all differences: percentage points or nats.
        expected: ``above zero`` or ``below zero``.
        estimate: The difference; None where the results have nothing of it.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p value.
        p_holm: Adjusted over all claims of the report.
        runs: Pre-training runs, or ladders of them, behind the estimate.
        values: The difference of each.
        margin: The margin of no effect.
        p_equivalence: Holm's adjusted p value of the equivalence test.
        detectable: Smallest true difference that such runs show with 80 % power.
        verdict: What may be said.
        reason: What the verdict needs beside the numbers; may be empty.
    """

    name: str
    encoders: str
    text: str
    compared: str
    unit: Unit
    expected: Literal["above zero", "below zero"]
    estimate: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    runs: int
    values: tuple[float, ...]
    margin: float
    p_equivalence: float | None
    detectable: float | None
    verdict: Verdict
    reason: str


def claims(study: Study, margins: Margins) -> list[Claim]:
    """Return the paper's claims on every ladder of encoders; without a ladder, on all encoders together."""
    every = [score for score in study.of_main_heads(study.scores) if score.downstream_noise > 0]
    groups = {
        family: [of_family(found, family) for found in (study.main, every)] for family in study.ladders
    } or {"all encoders": [study.main, every]}
    asked = [
        (name, one) for name, (main, noisy) in groups.items() for one in questions(main, noisy, study.heads)
    ]
    return judged(asked, margins)


def judged(asked: Sequence[tuple[str, Question]], margins: Margins) -> list[Claim]:
    """Judge claims together: Holm's adjustment is over all of them, and over all equivalence tests."""
    ps = [_p(question) for _, question in asked]
    same = [
        None
        if p is None or question.found is None
        else equivalence(question.found, _margin(question, margins) / _scale(question))
        for (_, question), p in zip(asked, ps, strict=True)
    ]
    return [
        _judge(encoders, question, margins, p, adjusted, equal)
        for (encoders, question), p, adjusted, equal in zip(asked, ps, holm(ps), holm(same), strict=True)
    ]


def _p(question: Question) -> float | None:
    # A difference without repetitions of the pre-training is no evidence, whatever its p value.
    if question.found is None or question.lacking:
        return None
    return question.found.p if question.p is None else question.p


def _judge(
    encoders: str,
    question: Question,
    margins: Margins,
    p: float | None,
    p_holm: float | None,
    p_same: float | None,
) -> Claim:
    scale, found, margin = _scale(question), question.found, _margin(question, margins)
    bound = None if p_holm is None or found is None else detectable(found)
    verdict, reason = _verdict(question, p_holm, p_same, f"±{margin:g} {question.unit}")
    if verdict == "undecided" and bound is not None:
        reason = f"such runs show a true difference of {scale * bound:.2g} {question.unit} in 80 % of studies"
    return Claim(
        name=question.name,
        encoders=encoders,
        text=question.text,
        compared=question.compared,
        unit=question.unit,
        expected="above zero" if question.sign > 0 else "below zero",
        estimate=None if found is None else scale * found.mean,
        low=None if found is None or found.low is None else scale * found.low,
        high=None if found is None or found.high is None else scale * found.high,
        p=p,
        p_holm=p_holm,
        runs=0 if found is None else found.n,
        values=() if found is None or found.against else tuple(scale * value for value in found.values),
        margin=margin,
        p_equivalence=p_same,
        detectable=None if bound is None else scale * bound,
        verdict=verdict,
        reason=reason,
    )


def _verdict(
    question: Question, p_holm: float | None, p_same: float | None, margin: str
) -> tuple[Verdict, str]:
    if question.found is None or p_holm is None:
        return "too few runs", question.lacking
    equal = p_same is not None and p_same < LEVEL
    if p_holm < LEVEL and question.found.mean * question.sign > 0:
        return "supported", f"a small one: it lies within {margin} (equivalence test)" if equal else ""
    if p_holm < LEVEL:
        return "contradicted", "the difference has the opposite sign"
    if equal:
        return "contradicted", f"no effect: the difference lies within {margin} (equivalence test)"
    return "undecided", ""


def _scale(question: Question) -> float:
    return 100.0 if question.unit == "points" else 1.0


def _margin(question: Question, margins: Margins) -> float:
    return margins.points if question.unit == "points" else margins.nats


def document(found: Iterable[Claim], margins: Margins) -> dict[str, Any]:
    """Return the claims as the content of ``claims.json``."""
    return {
        "format": FORMAT,
        "confidence": 0.95,
        "adjustment": "holm",
        "level": LEVEL,
        "power": 0.8,
        "margins": dataclasses.asdict(margins),
        "claims": [dataclasses.asdict(claim) for claim in found],
    }
