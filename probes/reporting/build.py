"""From rows to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from probes.reporting import claims
from probes.reporting.averages import noise_key
from probes.reporting.cautions import cautions
from probes.reporting.claims import Margins
from probes.reporting.records import Report
from probes.reporting.sections import (
    ablations,
    along,
    datasets,
    downstream,
    effects,
    heads,
    method,
    noise,
    pretraining,
    provenance,
    ranking,
    runtime,
    spectra,
    spectrum_accuracy,
    summary,
    white_box,
)
from probes.reporting.sections import claims as claims_section
from probes.reporting.sections import foretold as foretold_section
from probes.reporting.sections.foretold import Document
from probes.reporting.selection import select
from probes.reporting.study import Study
from probes.reporting.wording import count, several, unique
from probes.results import Row

SECTIONS = (
    summary.section,
    noise.section,
    effects.section,
    heads.section,
    ranking.section,
    spectrum_accuracy.section,
    datasets.section,
    spectra.section,
    downstream.section,
    runtime.section,
    pretraining.section,
    along.section,
    ablations.section,
)


def build(
    rows: Sequence[Row],
    *,
    convention: str | None = None,
    metric: str | None = None,
    margins: Margins | None = None,
    foretold: Document | None = None,
) -> Report:
    """Return the report of ``rows``.

    Args:
        rows: All rows of a results folder.
        convention: SVD convention of the spectra; None for the usual one.
        metric: What to report where results have several, for example ``spearman``; None for the usual one.
        margins: Differences too small to matter; None for the documented ones.
        foretold: What ``probes.predict_noise`` found; None for no section of it.

    Raises:
        UserError: If no row has the SVD ``convention`` or the ``metric`` asked for.
    """
    study = Study(select(rows, convention, metric))
    margins = margins or Margins()
    judged = claims.claims(study, margins)
    found = [claims_section.section(study, judged, margins), *(section(study) for section in SECTIONS)]
    if (beside := white_box.section(study)) is not None:
        found.append(beside)
    if foretold is not None:
        found.append(foretold_section.section(foretold))
    return Report(
        title="Noisy model learning: report",
        lead=_lead(study),
        cautions=cautions(study),
        sections=(*found, method.section(study, found), provenance.section(study)),
        documents=(("claims.json", json.dumps(claims.document(judged, margins), indent=2) + "\n"),),
        left_out=study.selection.notes,
    )


def _lead(study: Study) -> str:
    encoders = {score.encoder_hash for score in study.scores}
    levels = unique(noise_key(score) for score in study.known(study.scores))
    # A number and its unit stay on one line.
    shown = several([f"{level:g}\N{NO-BREAK SPACE}%" for level in levels])
    noises = f" with {shown} pre-training noise" if levels else ""
    tasks = sorted({row.task for row in study.rows})
    return (
        f"{count(len(study.rows), 'result')} of {count(len(encoders), 'encoder')}{noises}, "
        f"probed with {several(study.heads)} on {several(tasks)}."
    )
