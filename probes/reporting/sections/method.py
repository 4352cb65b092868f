"""How the numbers were made: definitions, conventions, rows left out, and what of the paper is here."""

from __future__ import annotations

from collections.abc import Sequence

from probes.reporting.cautions import uncompared
from probes.reporting.paired import METHOD
from probes.reporting.records import Gap, Section, Table, cells
from probes.reporting.sections import tries
from probes.reporting.study import Study
from probes.reporting.wording import several

PAPER = (
    "Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks, "
    "ICLR 2024, arXiv 2309.17002"
)
CONVENTIONS = {
    "raw": "the features as they are (the paper's definitions 2.1 and 2.2)",
    "row-centred": "each sample divided by its norm, then minus its mean over the features",
    "column-centred": "each dimension minus its mean over samples",
}


def section(study: Study, before: Sequence[Section]) -> Section:
    """Return the section.

    Args:
        study: What the report is of.
        before: The sections whose figures and tables are listed.
    """
    return Section(
        name="method", title="Method", items=(_definitions(study), tries.table(study), _coverage(before))
    )


def _definitions(study: Study) -> Table:
    convention = study.selection.convention
    metrics = sorted({(row.task, row.metric_name) for row in study.rows})
    own = several([f"{name} on {task}" for task, name in metrics], limit=20)
    entries = [
        (
            "Noise",
            "Realised share of pre-training labels or captions that were changed, as the export records it.",
        ),
        (
            "Metric",
            f"On the test set, of the head that validation data chose, never test data. Here {own}.",
        ),
        (
            "Out-of-domain",
            "The head fitted in domain, scored on shifted data; mean over a task's shifted test sets.",
        ),
        (
            "Run",
            "One pre-training, that is one encoder: the unit of every interval and N. A run's value is its "
            "mean over tasks of its mean over seeds of the head.",
        ),
        (
            "Seed",
            "Draws the training subset and the start of the head. Seeds do not repeat the pre-training.",
        ),
        (
            "Mean ± SD, Mean (SD)",
            "± over pre-training runs; of one run, in parentheses, over seeds of the head on it. Both with N "
            "− 1.",
        ),
        ("Tries", tries.statement(study)),
        ("Tasks", "The same for every run, and not drawn from anything: claims are about these tasks."),
        ("Difference", METHOD),
        (
            "SVD convention",
            f"{convention}: singular values of {CONVENTIONS.get(convention, 'the features')}.",
        ),
        ("SVE", "Entropy of the singular values' shares of their sum, in nats. Higher: flatter spectrum."),
        ("LSVR", "Minus the logarithm of the largest singular value's share. Higher: it dominates less."),
        ("Encoders", "Encoders whose names differ in noise level and seed only are read as one family."),
        *(("Left out", note) for note in study.selection.notes),
        *_beside(study),
    ]
    return Table(
        name="definitions",
        title="Definitions",
        caption="",
        header=("Term", "Meaning here"),
        rows=tuple(cells(*entry) for entry in entries),
        text_columns=2,
        prose=True,
    )


def _beside(study: Study) -> list[tuple[str, str]]:
    """Name results that no main table shows: nothing that was measured goes missing in silence."""
    notes = uncompared(study)
    if study.beside:
        reason = (
            "no result in the head's main setting, on clean labels, at the largest share of a task's data "
            "that its family has"
        )
        notes.insert(0, f"{several(study.beside)}: {reason}.")
    return [("Not in main tables", note) for note in notes]


def _coverage(before: Sequence[Section]) -> Table:
    rows = [
        cells(item.paper, item.title, "missing" if isinstance(item, Gap) else "here")
        for section in before
        for item in section.items
        if item.paper
    ]
    return Table(
        name="coverage",
        title="The paper's figures and tables in this report",
        caption=f"{PAPER}.",
        header=("Paper", "Here", "State"),
        rows=tuple(rows),
        text_columns=3,
        prose=True,
    )
