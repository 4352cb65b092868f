"""How good the probabilities of the heads are: likelihood and calibration error by noise level and head."""

from __future__ import annotations

import math

from probes.reporting.averages import level_and_head, means
from probes.reporting.records import Cell, Table, cells
from probes.reporting.study import Study, in_domain, of_family
from probes.reporting.wording import NONE, number, percent
from probes.results.row import Domain


def tables(study: Study) -> tuple[Table, ...]:
    """Return the table; none where the results are from before probabilities were measured."""
    measured = [score for score in study.main if not math.isnan(score.ece)]
    if not measured:
        return ()
    families = list(dict.fromkeys(score.family for score in measured))
    every: tuple[Domain, ...] = ("id", "ood")
    domains = [domain for domain in every if in_domain(measured, domain)]
    rows = []
    for family in families:
        found = of_family(measured, family)
        by = {
            (what, domain): means(in_domain(found, domain), level_and_head, value)
            for domain in domains
            for what, value in (("nll", lambda score: score.nll), ("ece", lambda score: score.ece))
        }
        for key in study.lines(found):
            if not any(key in values for values in by.values()):
                continue
            level, head = key
            entries: list[str | Cell] = [NONE if level is None else f"{level:g} %", head]
            for domain in domains:
                entries += [number(by["nll", domain].get(key)), percent(by["ece", domain].get(key))]
            rows.append(cells(*([family] if len(families) > 1 else []), *entries))
    table = Table(
        name="calibration-table",
        title="Calibration of the heads' probabilities",
        caption=(
            "Probabilities are softmax(logits / T), the temperature T fitted on the validation data of each "
            "fit. NLL: mean negative log-likelihood of the test labels, in nats. ECE: expected calibration "
            "error over 15 bins of confidence, in percentage points. Lower is better for both. Means are "
            "formed as in the summary."
        ),
        header=(
            *(["Encoders"] if len(families) > 1 else []),
            "Noise",
            "Head",
            *(f"{domain.upper()} {what}" for domain in domains for what in ("NLL", "ECE")),
        ),
        rows=tuple(rows),
        text_columns=3 if len(families) > 1 else 2,
        grouped=True,
    )
    return (table,)
