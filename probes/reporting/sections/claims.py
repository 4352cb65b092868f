"""What the runs say of the paper's claims: the first thing that a reader asks."""

from __future__ import annotations

from collections.abc import Sequence

from probes.reporting.claims import Claim, Margins
from probes.reporting.records import Cell, Section, Table, cells
from probes.reporting.study import Study
from probes.reporting.wording import NONE, number_cell, probability, several, with_interval


def section(study: Study, found: Sequence[Claim], margins: Margins) -> Section:
    """Return the section."""
    tasks = sorted({score.task for score in study.main})
    named = len({claim.encoders for claim in found}) > 1
    return Section(
        name="claims",
        title="The paper's claims",
        intro=(
            f"Each claim against these runs, on {several(tasks, limit=20) if tasks else 'no task'}: tasks "
            f"were not drawn from anything, so what holds, holds of these."
        ),
        items=(
            Table(
                name="claims-table",
                title="Claims",
                caption=(
                    f"Differences in percentage points or nats, with their 95 % Student t interval over "
                    f"pre-training runs, or over ladders of runs that share a seed where levels are "
                    f"compared. Supported: p < 0.05 after Holm's adjustment over all claims, and the claimed "
                    f"sign. Contradicted: the same with the opposite sign, or an equivalence test (two "
                    f"one-sided t tests, Holm) that puts the difference within the margin named beforehand, "
                    f"±{margins.points:g} points or ±{margins.nats:g} nats. Undecided: neither, and no "
                    f"evidence of no effect; detectable is the smallest true difference that so many runs of "
                    f"such spread show with 80 % power, at 5 % and without adjustment. The same numbers are "
                    "in claims.json."
                ),
                header=(
                    *(["Encoders"] if named else []),
                    "Claim",
                    "Verdict",
                    "Compared",
                    "Difference",
                    "Detectable",
                    "p, Holm",
                    "Runs",
                ),
                rows=tuple(cells(*([claim.encoders] if named else []), *_line(claim)) for claim in found),
                text_columns=3 + named,
                grouped=named,
                prose=True,
            ),
        ),
    )


def _line(claim: Claim) -> list[str | Cell]:
    decided = claim.verdict in ("supported", "contradicted")
    # What undecided ones could have shown has a column of its own.
    reason = "" if claim.verdict == "undecided" else claim.reason
    return [
        claim.text,
        Cell(claim.verdict, strong=decided),
        "; ".join(filter(None, (claim.compared, reason))).replace(" %", "\N{NO-BREAK SPACE}%"),
        _difference(claim),
        number_cell(claim.detectable, 1 if claim.unit == "points" else 2),
        probability(claim.p_holm),
        str(claim.runs) if claim.runs else NONE,
    ]


def _difference(claim: Claim) -> Cell:
    if claim.estimate is None:
        return Cell(NONE)
    text = with_interval(claim.estimate, claim.low, claim.high, 1 if claim.unit == "points" else 2)
    return Cell(
        f"{text} {claim.unit}",
        numbers=(
            ("", claim.estimate),
            ("low", claim.low),
            ("high", claim.high),
            ("p", claim.p),
            ("p, equivalence, Holm", claim.p_equivalence),
            ("margin", claim.margin),
            *((f"run {place}", value) for place, value in enumerate(claim.values, 1)),
        ),
    )
